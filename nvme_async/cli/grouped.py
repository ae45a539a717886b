"""The group of all subcommands: imported on demand, listed in sections, with complete
sentences.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

import click

from nvme_async.cli.fabrics import with_words
from nvme_async.cli.nvme.names import NVME
from nvme_async.cli.quirks import with_quirks

SECTIONS: dict[str, tuple[str, ...]] = {
    "Drives": (
        *("list", "discover", "list-subsys", "list-ctrl", "list-ns", "id-ctrl", "id-ns"),
        *("bind", "unbind", "doctor", "selftest", "reset", "subsystem-reset", "show-regs", "power"),
    ),
    "Health": (
        *("smart-log", "error-log", "device-self-test", "self-test-log", "endurance-log"),
        *("persistent-event-log", "telemetry-log", "effects-log", "get-feature", "set-feature"),
    ),
    "Data": (
        *("read", "write", "flush", "compare", "verify", "copy", "write-zeroes", "dsm", "zns"),
        *("export", "create-ns", "attach-ns", "detach-ns", "delete-ns"),
        *("format", "sanitize", "sanitize-log"),
    ),
    "Servicing": ("inspect", "top", "keeper", "share", "fw-log", "fw-download", "fw-commit"),
    "Benchmark": ("bench", "emulate"),
}
REST = "The rest of nvme-cli"
"""The section of nvme-cli's commands that no section above names."""
OTHERS = "More"
"""The section of commands that no other section names."""

OPENHCL = (
    ("OPENHCL_NVME_KEEP_ALIVE", "--keep-alive"),
    ("OPENHCL_DISABLE_NVME_KEEP_ALIVE", "--disable-keep-alive: any value but 0"),
    ("OPENHCL_ENABLE_VTL2_GPA_POOL", "--pool-pages"),
    ("OPENHCL_IGVM_VTL2_GPA_POOL_CONFIG", "--pool-pages, where the one before is not set"),
    ("OPENHCL_VTL2_GPA_POOL_NUMA", "--pool-numa"),
    ("OPENHCL_NVME_VFIO", "--vfio, --no-vfio: 1, 0"),
    ("OPENHCL_NVME_ALWAYS_FLR", "--always-flr, --no-always-flr: 1, 0"),
)
"""Environment variables, and the option that each replaces if it isn't given."""

EXIT_CODES = (
    ("0", "Done."),
    ("1", "The device or the operation failed."),
    ("2", "The command line is invalid."),
    ("130", "Interrupted."),
)


def first_sentence(command: click.Command) -> str:
    """The first sentence of the help text, on one line."""
    text = " ".join((command.help or "").split("\n\n")[0].split())
    end = text.find(". ")
    return (text if end < 0 else text[: end + 1]).rstrip(".")


NAME_WIDTH = 20
"""Columns of a command's name. A longer name has a line of its own."""


def aligned(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The rows as `write_dl()` lays them out alike in each section, whatever its longest name."""
    return [(name.ljust(NAME_WIDTH), text) for name, text in rows]


class LazyGroup(click.Group):
    """Subcommands as `module:attribute`, by name: they cost nothing until they are used."""

    def __init__(self, *args: object, table: Mapping[str, str], **more: object) -> None:
        self.table = table
        super().__init__(*args, **more)  # type: ignore[arg-type]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, attribute = self.table[cmd_name].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return with_quirks(with_words(command))

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """Names of all commands by section, each in one."""
        placed = {name for names in SECTIONS.values() for name in names}
        for title, names in SECTIONS.items():
            yield title, [name for name in names if name in self.table]
        for title, more in (REST, NVME - placed), (OTHERS, set(self.table) - placed - NVME):
            rest = sorted(more & set(self.table))
            if rest:
                yield title, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in self.sections():
            rows = []
            for name in names:
                command = self.get_command(ctx, name)
                assert command is not None
                rows.append((name, first_sentence(command)))
            with formatter.section(title):
                formatter.write_dl(aligned(rows), col_max=NAME_WIDTH)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("OpenHCL's names, from the environment"):
            formatter.write_dl(list(OPENHCL), col_max=40)
        with formatter.section("Exit codes"):
            formatter.write_dl(list(EXIT_CODES))
