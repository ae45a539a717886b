"""Read and write as one command with nvme-cli's options: tags, checks, hints, metadata."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nvme_async.cli.nvme.blocks import TRANSFER, transfer, transfer_command
from nvme_async.cli.nvme.build import execute, option
from nvme_async.cli.nvme.directives import namespace
from nvme_async.cli.nvme.target import VERBOSE
from nvme_async.driver.protection import Format
from nvme_async.spec import commands
from nvme_async.spec.identify import IdentifyNamespace

_PRACT = 8


def with_transfer_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command that also takes nvme-cli's options of one transfer; it gets them as `one`, None if
    none is given.
    """

    def callback(*positional: Any, **arguments: Any) -> None:
        rows = {name: default for _, name, _, default, _ in TRANSFER}
        options = {name: arguments.pop(name) for name in rows}
        given = any(options[name] != rows[name] for name in rows)
        click.get_current_context().meta[VERBOSE] = arguments.pop("verbose")
        arguments["one"] = options if given or click.get_current_context().meta[VERBOSE] else None
        function(*positional, **arguments)

    made: Callable[..., Any] = callback
    made = click.option("-v", "--verbose", is_flag=True, help="Show the commands that are sent.")(made)
    for row in reversed(TRANSFER):
        made = option(*row)(made)
    callback.__doc__ = function.__doc__
    return made


def default_bytes(identify: IdentifyNamespace, blocks: int, prinfo: int) -> int:
    """Bytes of so many blocks in the data buffer, with metadata at their ends if they have it."""
    return blocks * Format.of(identify, None).data_step(act=bool(prinfo & _PRACT))


def read_one(
    device: str, nsid: int | None, start: int, count: int, data: str, fua: bool, options: dict[str, Any]
) -> int:
    """One Read; returns how many bytes came. data: a file's name, or - for stdout."""

    async def operation(controller: Any) -> tuple[bytes, bytes]:
        ns = namespace(controller, nsid)
        made = transfer_command(commands.read, ns, start, count, fua, options)
        nbytes = options["data_size"] or default_bytes(ns.identify, count + 1, options["prinfo"])
        return await transfer(controller, ns, made, None, options | {"data_size": nbytes})

    came, separate = execute(device, operation)
    if options["metadata"] is not None and separate:
        options["metadata"].write_bytes(separate)
    if data == "-":
        sys.stdout.buffer.write(came)
        sys.stdout.buffer.flush()
    else:
        Path(data).write_bytes(came)
    return len(came)


def write_one(
    device: str,
    nsid: int | None,
    start: int,
    count: int,
    data: str,
    fua: bool,
    options: dict[str, Any],
) -> int:
    """One Write; returns how many bytes went. data: a file's name, or - for stdin."""
    whole = sys.stdin.buffer.read() if data == "-" else Path(data).read_bytes()

    async def operation(controller: Any) -> int:
        ns = namespace(controller, nsid)
        made = transfer_command(commands.write, ns, start, count, fua, options)
        nbytes = options["data_size"] or default_bytes(ns.identify, count + 1, options["prinfo"])
        if len(whole) < nbytes:
            raise click.UsageError(f"{len(whole)} bytes of data are less than the {nbytes} of {count + 1} blocks")
        await transfer(controller, ns, made, whole[:nbytes], options)
        return 0 if options["dry_run"] else nbytes

    sent: int = execute(device, operation)
    return sent
