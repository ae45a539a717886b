"""Log pages and features by number, and the log pages that are more than a page: telemetry,
persistent events, boot partition.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click

from nvme_async.cli.nvme.build import builder_arguments, command, execute, say
from nvme_async.cli.nvme.output import lines, show
from nvme_async.cli.nvme.page import RAE, UUID_INDEX, Option
from nvme_async.cli.nvme.pages_rare import read_boot_partition
from nvme_async.cli.nvme.shapes_events import persistent
from nvme_async.cli.nvme.shapes_features import SELECTIONS, explained, feature, feature_name
from nvme_async.cli.nvme.shapes_rare import boot_partition
from nvme_async.driver import management
from nvme_async.driver.management.logs import read_log
from nvme_async.errors import CommandError
from nvme_async.spec import commands
from nvme_async.spec.opcodes import NSID_ALL, Feature, FeatureSelect, LogPage
from nvme_async.spec.persistent import PersistentEventLog

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW = click.Path(dir_okay=False, path_type=Path)
_NSID: Option = (("-n", "--namespace-id"), "nsid", int, None, "Which namespace.")
_HEADER = 16
_EVENT_TYPES = 0xFF


def hexdump(data: bytes) -> str:
    """Sixteen bytes a line, with their characters."""
    rows = ["       " + " ".join(f"{column:2x}" for column in range(16))]
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        rows.append(f'{at:04x}: {part.hex(" "):<47} "{text}"')
    return "\n".join(rows)


@command(
    "get-log",
    (("-i", "--log-id"), "lid", int, None, "Which log page."),
    (("-l", "--log-len"), "length", int, 512, "Bytes, a multiple of 4."),
    (("-n", "--namespace-id"), "nsid", int, NSID_ALL, "Of which namespace."),
    (("-a", "--aen"), "aen", int, 0, "Instead of --log-id: the result of an event, which names the page."),
    (("-s", "--lsp"), "lsp", int, 0, "Log specific field."),
    (("-S", "--lsi"), "lsi", int, 0, "Log specific identifier."),
    (("-L", "-p", "--lpo"), "offset", int, 0, "First byte; with --ot an index of entries."),
    RAE,
    (("-y", "--csi"), "csi", int, 0, "I/O command set."),
    UUID_INDEX,
    (("-O", "--ot"), "by_index", bool, False, "The offset is an index of entries."),
    (("-x", "--xfer-len"), "piece", int, 4096, "Bytes of one command, a multiple of 4096."),
    output=True,
)
def get_log(
    device: str | None,
    lid: int | None,
    length: int,
    aen: int,
    by_index: bool,
    piece: int,
    output: str,
    human: bool,
    **more: Any,
) -> None:
    """Show any log page of DEVICE."""
    if aen:
        lid, length = aen >> 16 & 0xFF, 4096
    if lid is None:
        raise click.UsageError("--log-id is needed")
    if piece <= 0 or piece % 4096:
        raise click.UsageError(f"--xfer-len {piece} is no multiple of 4096")
    page = lid

    async def operation(controller: Any) -> bytes:
        if not by_index:
            return await read_log(controller, page, length, **more)
        # An index can't be advanced by bytes, so it is one command.
        made = commands.get_log_page(
            page,
            length,
            more["nsid"],
            more["offset"],
            more["lsp"],
            more["lsi"],
            more["rae"],
            more["uuid_index"],
            more["csi"],
            True,
        )
        data: bytes = (await controller.admin(made)).data
        return data

    with builder_arguments():
        data = execute(device, operation)

    def text() -> str:
        return f"Device:{device} log-id:{lid} namespace-id:{more['nsid']:#x}\n{hexdump(data)}"

    show(output, data, {"log_id": lid, "data": data.hex()}, text=text)


async def _feature(
    controller: Any, fid: int, select: int, nsid: int, cdw11: int, uuid_index: int, length: int | None
) -> tuple[int, bytes]:
    if fid == Feature.FDP_EVENTS:
        # Dword 11 says for how many event types there is space (Base 2.1, 5.1.25.1.21). nvme-cli
        # has space for all.
        cdw11 |= _EVENT_TYPES << 16
        if length is None and select != FeatureSelect.CAPABILITIES:
            length = 2 * _EVENT_TYPES
    made = commands.get_features(fid, sel=select, nsid=nsid, cdw11=cdw11, uuid_index=uuid_index)
    if length is not None:
        made = attrs.evolve(made, data_length=length)
    completion = await controller.admin(made)
    return completion.dw0, completion.data or b""


@command(
    "get-feature",
    (("-f", "--feature-id"), "fid", int, None, "Which feature.  [default: all that DEVICE has]"),
    _NSID,
    (("-s", "--sel"), "select", click.IntRange(0, 3), 0, "0 current, 1 default, 2 saved, 3 capabilities."),
    (("-l", "--data-len"), "length", int, None, "Bytes of its data structure.  [default: as specified]"),
    (("-c", "--cdw11"), "cdw11", int, 0, "Command dword 11."),
    UUID_INDEX,
    (("-C", "--changed"), "changed", bool, False, "Only features that differ from their default."),
    output=True,
)
def get_feature(
    device: str | None,
    fid: int | None,
    nsid: int | None,
    select: int,
    length: int | None,
    cdw11: int,
    uuid_index: int,
    changed: bool,
    output: str,
    human: bool,
) -> None:
    """Show a feature of DEVICE, or all."""

    async def one(controller: Any, number: int, which: int) -> tuple[int, bytes]:
        return await _feature(controller, number, which, nsid or 0, cdw11, uuid_index, length)

    async def operation(controller: Any) -> list[tuple[int, int, bytes]]:
        found = []
        for number in [fid] if fid is not None else [int(known) for known in Feature]:
            try:
                value, data = await one(controller, number, select)
                if changed and (value, data) == await one(controller, number, FeatureSelect.DEFAULT):
                    continue
            except CommandError:
                if fid is not None:
                    raise
                continue  # it doesn't have this one
            found.append((number, value, data))
        return found

    found = execute(device, operation)
    shown: dict[str, Any] = {}
    for number, value, data in found:
        shown |= feature(number, select, value, data)

    def text() -> str:
        rows = []
        for number, value, data in found:
            rows.append(
                f"get-feature:{number:#04x} ({feature_name(number)}), {SELECTIONS[select]} value: {value:#010x}"
            )
            if human and select != FeatureSelect.CAPABILITIES:
                rows += lines(explained(number, value, data), 2)
            elif human:
                rows += lines(shown[f"Feature: {number:#04x}: select"], 2)
            elif data:
                rows.append(hexdump(data))
        return "\n".join(rows)

    show(output, b"".join(data for _, _, data in found), shown, text=text)


@command(
    "set-feature",
    (("-f", "--feature-id"), "fid", int, None, "Which feature."),
    _NSID,
    (("-V", "--value"), "value", int, 0, "Command dword 11."),
    (("-c", "--cdw12"), "cdw12", int, 0, "Command dword 12."),
    UUID_INDEX,
    (("-l", "--data-len"), "length", int, None, "Bytes of its data structure.  [default: as specified]"),
    (("-d", "--data"), "data", _FILE, None, "File with the data structure."),
    (("-s", "--save"), "save", bool, False, "Keep it over power cycles."),
)
def set_feature(
    device: str | None,
    fid: int | None,
    nsid: int | None,
    value: int,
    cdw12: int,
    uuid_index: int,
    length: int | None,
    data: Path | None,
    save: bool,
) -> None:
    """Change a feature of DEVICE."""
    if fid is None:
        raise click.UsageError("--feature-id is needed")
    if uuid_index > 127:
        raise click.UsageError(f"--uuid-index {uuid_index} is not in 0..127")
    made = commands.set_features(fid, value, nsid or 0, save, cdw12, cdw14=uuid_index)
    payload = None if data is None else data.read_bytes()
    if length is not None:
        made = attrs.evolve(made, data_length=length)
    if made.data_length:
        if payload is None:
            raise click.UsageError(f"--data is needed: feature {fid:#04x} has {made.data_length} bytes")
        payload = payload[: made.data_length].ljust(made.data_length, b"\0")
    else:
        payload = None
    completion = execute(device, lambda controller: controller.admin(made, payload))
    say(f"set-feature:{fid:#04x} ({feature_name(fid)}), value:{value:#010x}, cdw12:{cdw12:#010x}, save:{int(save):#x}")
    if completion.dw0:
        say(f"result: {completion.dw0:#x}")


@command(
    "telemetry-log",
    (("-O", "--output-file"), "path", _NEW, None, "Where it goes."),
    (("-g", "--host-generate"), "generate", click.IntRange(0, 1), 1, "1: the controller collects it anew."),
    (("-c", "--controller-init"), "controller_init", bool, False, "What the controller has collected by itself."),
    (("-d", "--data-area"), "area", click.IntRange(1, 4), 3, "Up to which data area."),
    RAE,
    (
        ("-m", "--mcda"),
        "most",
        click.IntRange(0, 4),
        0,
        "Up to which data area the controller collects; 0: it decides.",
    ),
)
def telemetry_log(
    device: str | None, path: Path | None, generate: int, controller_init: bool, area: int, rae: bool, most: int
) -> None:
    """Save the telemetry of DEVICE."""
    if path is None:
        raise click.UsageError("--output-file is needed")
    if most and most < area:
        raise click.UsageError(f"--mcda {most}: data area {area} is not collected")
    retain = rae or not controller_init
    data = execute(
        device,
        lambda controller: management.telemetry_log(
            controller, host=not controller_init, area=area, create=bool(generate), rae=retain
        ),
    )
    path.write_bytes(data)
    say(f"{len(data)} bytes of telemetry in {path}")


@command(
    "persistent-event-log",
    (("-a", "--action"), "action", click.IntRange(0, 3), None, "0 read, 1 establish a context and read, 2 release it."),
    (("-l", "--log_len"), "length", int, None, "Bytes to read.  [default: all]"),
    output=True,
)
def persistent_event_log(device: str | None, action: int | None, length: int | None, output: str, human: bool) -> None:
    """Show the events of DEVICE.

    They are read in a context that is released afterwards; --action does one step.
    """

    async def operation(controller: Any) -> bytes:
        if action is None:
            return await management.persistent_event_bytes(controller)
        head = await read_log(controller, LogPage.PERSISTENT_EVENT, 512, lsp=action)
        if action == 2:
            return b""
        whole = min(PersistentEventLog.length(head), length or 1 << 32)
        return await read_log(controller, LogPage.PERSISTENT_EVENT, (max(512, whole) + 3) & ~3)

    try:
        data = execute(device, operation)
        if not data:
            say("Releasing Persistent Event Log Context")
            return
        shown = persistent(PersistentEventLog.decode(data, whole=length is None))
    except ValueError as error:
        raise click.ClickException(f"the controller's response is invalid: {error}") from error
    show(output, data, shown)


@command(
    "boot-part-log",
    (("-f", "--output-file"), "path", _NEW, None, "Where the partition goes."),
    (("-s", "--lsp"), "lsp", click.IntRange(0, 127), 0, "Log specific field; bit 0: which boot partition."),
    output=True,
)
def boot_part_log(device: str | None, path: Path | None, lsp: int, output: str, human: bool) -> None:
    """Show and save a boot partition of DEVICE."""
    if path is None:
        raise click.UsageError("--output-file is needed")
    try:
        data = execute(device, lambda controller: read_boot_partition(controller, {"lsp": lsp}))
        shown = boot_partition(data, {})
    except ValueError as error:
        raise click.ClickException(f"the controller's response is invalid: {error}") from error
    path.write_bytes(data[_HEADER:])
    show(output, data, shown)
