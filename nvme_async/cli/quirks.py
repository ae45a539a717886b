"""--quirks on every command that opens a device or shows its quirks."""

from __future__ import annotations

import copy
import functools
from typing import Any

import click

from nvme_async.device.quirks import with_command_line
from nvme_async.errors import ConfigurationError

_ARGUMENTS = {"device", "devices", "uris", "targets"}
_SHOWING = {"list", "doctor", "connect-all"}
"""Commands that deal with devices which no argument names."""

HELP = "Override the table of quirks: none, names, +name and -name; or by PCI ids, 'vvvv:dddd=+name; *=none'."


def use_quirks(ctx: click.Context, text: str | None) -> None:
    """`text` applies to all devices until the context ends. click.UsageError if it is invalid."""
    if text is None:
        return
    try:
        ctx.with_resource(with_command_line(text))
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None


def with_quirks(command: click.Command) -> click.Command:
    """The command, or a copy of it that takes --quirks; so do the commands of a group. The command
    itself stays as it is.
    """
    if members := getattr(command, "commands", {}):
        group = copy.copy(command)
        group.commands = {name: with_quirks(member) for name, member in members.items()}  # type: ignore[attr-defined]
        command = group
    opens = any(
        isinstance(one, click.Argument) and one.name in _ARGUMENTS and not one.callback for one in command.params
    )
    callback = command.callback
    if callback is None or not (opens or command.name in _SHOWING):
        return command

    @functools.wraps(callback)
    def call(*, quirks: str | None, **arguments: Any) -> Any:
        use_quirks(click.get_current_context(), quirks)
        return callback(**arguments)

    made = copy.copy(command)
    made.params = [*command.params, click.Option(["--quirks"], metavar="QUIRKS", help=HELP)]
    made.callback = call
    return made
