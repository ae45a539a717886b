"""Directives, Flexible Data Placement and I/O management."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click

from nvme_async.cli.nvme import shapes_fdp
from nvme_async.cli.nvme.build import FORCE, ask, command, execute, say
from nvme_async.cli.nvme.features import hexdump
from nvme_async.cli.nvme.output import lines, show
from nvme_async.cli.nvme.page import NSID, Option
from nvme_async.cli.nvme.shapes_features import FDP_EVENTS
from nvme_async.cli.nvme.target import first_namespace
from nvme_async.spec import _nvme_cli, commands
from nvme_async.spec.directives import DirectiveParameters, StreamParameters, decode_streams_status
from nvme_async.spec.fdp import FdpMode
from nvme_async.spec.opcodes import NSID_ALL, Direction, IoManagementOperation

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DIRECTIVE: tuple[Option, ...] = (
    (("-n", "--namespace-id"), "nsid", int, NSID_ALL, "Namespace."),
    (("-D", "--dir-type"), "dtype", int, 0, "Directive type: 0 identify, 1 streams, 2 data placement."),
    (("-S", "--dir-spec"), "dspec", int, 0, "Directive specific."),
    (("-O", "--dir-oper"), "doper", int, 0, "Operation."),
    (("-l", "--data-len"), "length", int, 0, "Bytes of data."),
)
_IDENTIFY, _STREAMS = 0, 1
_PARAMETERS, _STATUS, _RESOURCES = 1, 2, 3
_TYPES = ("Identify Directive", "Stream Directive", "Data Placement Directive")


def numbers(text: str | None, name: str) -> list[int]:
    """Numbers with commas between them."""
    try:
        return [int(part, 0) for part in (text or "").split(",") if part]
    except ValueError:
        raise click.UsageError(f"--{name} {text!r}: give numbers, with commas between them") from None


def _explained(dtype: int, doper: int, result: int, data: bytes) -> dict[str, Any]:
    if dtype == _IDENTIFY and doper == _PARAMETERS:
        page = DirectiveParameters.decode(data)
        words = ("Disabled", "Enabled")
        return {
            "Directive support": {
                name: "Supported" if kind in page.supported else "Not supported" for kind, name in enumerate(_TYPES)
            },
            "Directive enabled": {name: words[kind in page.enabled] for kind, name in enumerate(_TYPES)},
            "Directive Persistent Across Controller Level Resets": {
                name: words[kind in page.persistent] for kind, name in enumerate(_TYPES)
            },
        }
    if dtype == _STREAMS and doper == _PARAMETERS:
        one = StreamParameters.decode(data)
        return {
            "Max Streams Limit (MSL)": one.msl,
            "NVM Subsystem Streams Available (NSSA)": one.nssa,
            "NVM Subsystem Streams Open (NSSO)": one.nsso,
            "NVM Subsystem Stream Capability (NSSC)": one.nssc,
            "Stream Write Size (in unit of LB size) (SWS)": one.sws,
            "Stream Granularity Size (in unit of SWS) (SGS)": one.sgs,
            "Namespace Streams Allocated (NSA)": one.nsa,
            "Namespace Streams Open (NSO)": one.nso,
        }
    if dtype == _STREAMS and doper == _STATUS:
        found = decode_streams_status(data)
        return {"Open Stream Count": int.from_bytes(data[:2], "little")} | {
            f"Stream Identifier {index:06}": stream for index, stream in enumerate(found, 1)
        }
    if dtype == _STREAMS and doper == _RESOURCES:
        return {"Namespace Streams Allocated (NSA)": result & 0xFFFF}
    return {"Error": "the operation of this directive has no fields"}


def _bytes_of(dtype: int, doper: int) -> int:
    """Bytes that an operation returns, if the command line doesn't say it."""
    return {(_IDENTIFY, _PARAMETERS): 4096, (_STREAMS, _PARAMETERS): 32, (_STREAMS, _STATUS): 4096}.get(
        (dtype, doper), 0
    )


@command(
    "dir-receive",
    *_DIRECTIVE,
    (("-r", "--req-resource"), "cdw12", int, 0, "Command dword 12: streams requested."),
    output=True,
)
def dir_receive(
    device: str | None, output: str, human: bool, nsid: int, dtype: int, dspec: int, doper: int, length: int, cdw12: int
) -> None:
    """Show the answer of a directive of DEVICE."""
    made = commands.directive_receive(dtype, doper, dspec, length or _bytes_of(dtype, doper), nsid, cdw12)
    completion = execute(device, lambda controller: controller.admin(made))
    data = completion.data or b""
    shown: dict[str, Any] = {
        "Type": f"{dtype:#x}" if dtype else "0",
        "Operation": f"{doper:#x}" if doper else "0",
        "spec": f"{dspec:#x}" if dspec else "0",
        "NSID": f"{nsid:#x}" if nsid else "0",
        "Result": f"{completion.dw0:#x}" if completion.dw0 else "0",
    }
    try:
        more = _explained(dtype, doper, completion.dw0, data) if human else {}
    except ValueError as error:
        raise click.UsageError(f"--data-len: {error}") from None
    if human:
        shown |= more
    elif data:
        shown["data"] = _nvme_cli.ascii_rows(data)

    def text() -> str:
        head = (
            f"dir-receive: type {dtype:#x}, operation {doper:#x}, spec {dspec:#x}, nsid {nsid:#x}, "
            f"result {completion.dw0:#x}"
        )
        return "\n".join([head, *(lines(more, 2) if human else [hexdump(data)] if data else [])])

    show(output, data, shown, text=text)


@command(
    "dir-send",
    *_DIRECTIVE,
    (("-T", "--target-dir"), "target", int, 0, "Identify: the directive type to switch."),
    (("-e", "--endir"), "enable", click.IntRange(0, 1), 0, "Identify: 1 enables it."),
    (("-i", "--input-file"), "path", _FILE, None, "What is sent."),
    (("-H", "--human-readable"), "human", bool, False, "No effect: there is nothing to explain."),
    (("-b", "--raw-binary"), "raw", bool, False, "No effect: nothing comes back."),
)
def dir_send(
    device: str | None,
    nsid: int,
    dtype: int,
    dspec: int,
    doper: int,
    length: int,
    target: int,
    enable: int,
    path: Path | None,
    human: bool,
    raw: bool,
) -> None:
    """Send a directive to DEVICE."""
    if length and path is None:
        raise click.UsageError("--input-file is needed for --data-len")
    data = path.read_bytes()[:length].ljust(length, b"\0") if path is not None and length else None
    made = commands.directive_send(dtype, doper, dspec, length, nsid, target << 8 | enable)
    completion = execute(device, lambda controller: controller.admin(made, data))
    say(
        f"dir-send: type {dtype:#x}, operation {doper:#x}, spec_val {dspec:#x}, nsid {nsid:#x}, "
        f"result {completion.dw0:#x}"
    )


# -- I/O management --------------------------------------------------------------------------------


async def _receive(controller: Any, nsid: int | None, operation: int, nbytes: int, specific: int) -> bytes:
    chosen = first_namespace(controller, nsid)
    made = commands.io_management_receive(chosen, operation, nbytes, specific)
    data: bytes = (await namespace(controller, chosen).submit(made)).data
    return data


def namespace(controller: Any, nsid: int | None) -> Any:
    """An active namespace."""
    chosen = first_namespace(controller, nsid)
    if chosen not in controller.namespaces:
        raise click.ClickException(f"namespace {chosen} of {controller.uri} is not active")
    return controller.namespaces[chosen]


@command("fdp status", NSID, output=True)
def fdp_status(device: str | None, nsid: int | None, output: str, human: bool) -> None:
    """Show the reclaim units that a namespace of DEVICE writes to."""

    async def operation(controller: Any) -> bytes:
        kind = IoManagementOperation.RUH_STATUS
        head = await _receive(controller, nsid, kind, 16, 0)
        nbytes = 16 + 32 * int.from_bytes(head[14:16], "little")
        return await _receive(controller, nsid, kind, nbytes, 0)

    data = execute(device, operation)
    show(output, data, shapes_fdp.status(data))


@command("fdp update", NSID, (("-p", "--pids"), "pids", str, None, "Placement identifiers: 0,1."))
def fdp_update(device: str | None, nsid: int | None, pids: str | None) -> None:
    """Give placement identifiers of a namespace of DEVICE new reclaim units."""
    wanted = numbers(pids, "pids")
    if not wanted:
        raise click.UsageError("--pids is needed: which placement identifiers")
    try:
        payload = commands.placement_list(wanted)
    except ValueError as error:
        raise click.UsageError(f"--pids: {error}") from None

    async def operation(controller: Any) -> None:
        ns = namespace(controller, nsid)
        await ns.submit(commands.reclaim_unit_handle_update(ns.nsid, len(wanted)), payload)

    execute(device, operation)
    say("update: Success")


@command(
    "fdp set-events",
    (("-n", "--namespace-id"), "nsid", int, None, "Namespace.  [default: the first]"),
    (("-p", "--placement-handle"), "handle", int, 0, "Of which placement handle."),
    (("-e", "--enable"), "enable", bool, False, "Log these events; without it they are not logged."),
    (("-s", "--save"), "save", bool, False, "Keep it over power cycles."),
    (("-t", "--event-types"), "types", str, None, "Event types: 0,1,0x80."),
)
def fdp_set_events(
    device: str | None, nsid: int | None, handle: int, enable: bool, save: bool, types: str | None
) -> None:
    """Choose which FDP events a placement handle of DEVICE logs."""
    wanted = numbers(types, "event-types")
    if not 1 <= len(wanted) <= 255 or max(wanted) > 255:
        known = ", ".join(f"{kind:#x} {name.lower()}" for kind, name in FDP_EVENTS.items())
        raise click.UsageError(f"--event-types is needed, at most 255 of them: {known}")

    async def operation(controller: Any) -> None:
        chosen = first_namespace(controller, nsid)
        await controller.admin(commands.set_fdp_events(chosen, handle, len(wanted), enable, save), bytes(wanted))

    execute(device, operation)
    say("set-events: Success")


@command(
    "fdp feature",
    (("-e", "--endgrp-id"), "group", int, None, "Which endurance group."),
    (("-c", "--enable-conf-idx"), "index", int, None, "Enable this configuration."),
    (("-d", "--disable"), "disable", bool, False, "Disable it."),
    FORCE,
)
def fdp_feature(device: str | None, group: int | None, index: int | None, disable: bool, force: bool) -> None:
    """Show whether an endurance group of DEVICE uses FDP, or switch it.

    A controller does that only while the group has no namespace.
    """
    if group is None:
        raise click.UsageError("--endgrp-id is needed: which endurance group")
    if index is not None and disable:
        raise click.UsageError("--enable-conf-idx and --disable exclude each other")
    if index is None and not disable:
        mode = FdpMode.from_int(execute(device, lambda controller: controller.admin(commands.get_fdp(group))).dw0)
        say(f"Endurance Group {group}: FDP {'enabled' if mode.fdpe else 'disabled'}, configuration {mode.fdpcidx}")
        return
    ask(device, f"a switch of FDP in endurance group {group}", force)
    made = commands.set_fdp(group, not disable, index or 0, save=True)
    execute(device, lambda controller: controller.admin(made))
    say(f"Success {'disabling' if disable else 'enabling'} Endurance Group: {group}")


_MANAGEMENT: tuple[Option, ...] = (
    NSID,
    (("-s", "--mos"), "specific", int, 0, "Management operation specific."),
    (("-m", "--mo"), "operation", int, 0, "Management operation."),
)


@command(
    "io-mgmt-recv",
    *_MANAGEMENT,
    (("-d", "--data"), "path", click.Path(dir_okay=False, path_type=Path), None, "File that the data go to."),
    (("-l", "--data-len"), "length", int, 0, "Bytes of data, a multiple of 4."),
    output=True,
)
def io_mgmt_recv(
    device: str | None,
    nsid: int | None,
    specific: int,
    operation: int,
    path: Path | None,
    length: int,
    output: str,
    human: bool,
) -> None:
    """Show the answer to I/O Management Receive of a namespace of DEVICE."""
    try:
        data = execute(device, lambda controller: _receive(controller, nsid, operation, length, specific))
    except ValueError as error:
        raise click.UsageError(f"--data-len: {error}") from None
    if path is not None:
        path.write_bytes(data)
    show(output, data, {"mo": operation, "mos": specific, "data": data.hex()}, text=lambda: hexdump(data))


@command(
    "io-mgmt-send",
    *_MANAGEMENT,
    (("-d", "--data"), "path", _FILE, None, "What is sent."),
    (("-l", "--data-len"), "length", int, 0, "Bytes of data."),
)
def io_mgmt_send(
    device: str | None, nsid: int | None, specific: int, operation: int, path: Path | None, length: int
) -> None:
    """Send I/O Management Send to a namespace of DEVICE."""
    payload = None if path is None or not length else path.read_bytes()[:length].ljust(length, b"\0")
    if length and payload is None:
        raise click.UsageError("--data is needed for --data-len")

    async def send(controller: Any) -> int:
        ns = namespace(controller, nsid)
        made = commands.reclaim_unit_handle_update(ns.nsid, 1)
        made = attrs.evolve(made, cdw10=operation | specific << 16, data_length=length)
        assert made.direction in (Direction.HOST_TO_CONTROLLER, Direction.NONE)
        dw0: int = (await ns.submit(made, payload)).dw0
        return dw0

    say(f"io-mgmt-send: Success, mos:{specific} mo:{operation} nsid:{nsid or 1}, result {execute(device, send):#x}")
