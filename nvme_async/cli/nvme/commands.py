"""All supported sub-commands of nvme-cli, by name."""

from __future__ import annotations

import click

from nvme_async.cli.nvme import blocks, changes, directives, features, listing, raw, registers, reservations, zones
from nvme_async.cli.nvme.build import COMMANDS

GROUPS = {"fdp": "Flexible Data Placement.", "zns": "Zoned namespaces."}
# These modules register their commands when they are imported.
MODULES = (blocks, changes, directives, features, listing, raw, registers, reservations, zones)


def find(name: str) -> click.Command:
    """A command, or a group of them."""
    if name not in GROUPS:
        return COMMANDS[name]
    members = {key.split(" ", 1)[1]: made for key, made in COMMANDS.items() if key.startswith(f"{name} ")}
    return click.Group(name, commands=members, help=GROUPS[name])


def names() -> frozenset[str]:
    """The names of commands and groups."""
    return frozenset(key.split(" ", 1)[0] for key in COMMANDS)


def __getattr__(name: str) -> click.Command:
    """Each by its name, as `nvme_async.cli.main` requests it."""
    if name not in names():
        raise AttributeError(f"unknown command {name!r}")
    return find(name)
