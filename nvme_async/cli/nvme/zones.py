"""Commands of the zoned namespace command set."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import attrs
import click

from nvme_async.cli.nvme.blocks import FUA, LIMITED, NSID, tagged
from nvme_async.cli.nvme.build import FORCE, ask, builder_arguments, command, execute, say
from nvme_async.cli.nvme.directives import namespace
from nvme_async.cli.nvme.features import hexdump
from nvme_async.cli.nvme.output import show
from nvme_async.cli.nvme.page import Option, read_identify
from nvme_async.driver.zoned import ZonedNamespace
from nvme_async.spec import _nvme_cli, commands
from nvme_async.spec.opcodes import Cns, Csi, ZoneReceiveAction, ZoneSendAction
from nvme_async.spec.zns import IdentifyNamespaceZns, ZoneDescriptor, ZoneReport

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_START: Option = (("-s", "--start-lba", "--start-block"), "start", int, 0, "The zone's first block.")
_STATES = {
    0x1: "EMPTY",
    0x2: "IMP_OPENED",
    0x3: "EXP_OPENED",
    0x4: "CLOSED",
    0xD: "READONLY",
    0xE: "FULL",
    0xF: "OFFLINE",
}
_SEQUENTIAL, _EXTENSION_VALID = 2, 0x80
_PIECE = 64 << 10


def _zone(zone: ZoneDescriptor, extension: bytes | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "slba": zone.zslba,
        "wp": zone.wp,
        "cap": zone.zcap,
        "state": _STATES.get(zone.zs >> 4, "Unknown State"),
        "type": "SEQWRITE_REQ" if zone.zt == _SEQUENTIAL else "Unknown",
        "attrs": zone.za,
        "attrs_info": zone.zai,
    }
    if extension is not None:
        valid = zone.za & _EXTENSION_VALID
        shown["ext_data"] = _nvme_cli.ascii_rows(extension) if valid else "Not valid"
    return shown


async def _zone_format(controller: Any, ns: Any) -> tuple[int, int]:
    """(Blocks from one zone to the next, bytes of a zone descriptor extension)."""
    page = IdentifyNamespaceZns.decode(await read_identify(controller, Cns.CSI_NAMESPACE, ns.nsid, csi=Csi.ZNS))
    form = page.lbafe[ns.identify.lbaf_index]
    if not form.zsze:
        raise click.ClickException(f"namespace {ns.nsid} of {controller.uri} has no zones")
    return form.zsze, form.zdes * 64


async def _report(
    controller: Any, ns: Any, start: int, state: int, most: int | None, extended: bool
) -> list[tuple[ZoneDescriptor, bytes | None]]:
    """Zones from the one with block `start` on, in as many commands as it takes."""
    size, bytes_each = await _zone_format(controller, ns)
    extension = bytes_each if extended else 0
    step = ZoneDescriptor.SIZE + extension
    piece = max(64 + step, min(_PIECE, controller.transport.max_transfer))
    action = ZoneReceiveAction.EXTENDED_REPORT if extended else ZoneReceiveAction.REPORT
    found: list[tuple[ZoneDescriptor, bytes | None]] = []
    while start < ns.blocks and (most is None or len(found) < most):
        room = piece if most is None else min(piece, 64 + step * (most - len(found)))
        made = commands.zone_management_receive(ns.nsid, start, room // 4 * 4, action, option=state, partial=True)
        report = ZoneReport.decode((await ns.submit(made)).data, extension)
        if not report.zones or report.zones[-1].zslba + size <= start:
            break
        found += zip(report.zones, report.extensions if extension else [None] * len(report.zones), strict=True)
        start = report.zones[-1].zslba + size
    return found if most is None else found[:most]


@command(
    "zns report-zones",
    NSID,
    _START,
    (("-d", "--descs"), "descs", int, None, "Maximum number.  [default: all]"),
    (("-S", "--state"), "state", click.IntRange(0, 7), 0, "Only zones in that state; 0: all."),
    (("-e", "--extended"), "extended", bool, False, "With the zone descriptor extensions."),
    (("-p", "--partial"), "partial", bool, False, "nr_zones counts the zones that are listed."),
    output=True,
)
def report_zones(
    device: str | None,
    nsid: int | None,
    start: int,
    descs: int | None,
    state: int,
    extended: bool,
    partial: bool,
    output: str,
    human: bool,
) -> None:
    """List the zones of a namespace of DEVICE."""

    async def operation(controller: Any) -> tuple[list[tuple[ZoneDescriptor, bytes | None]], int]:
        ns = namespace(controller, nsid)
        found = await _report(controller, ns, start, state, descs, extended)
        if partial or descs is None:
            return found, len(found)
        made = commands.zone_management_receive(ns.nsid, start, 64, option=state)
        return found, ZoneReport.decode((await ns.submit(made)).data).nzones

    found, number = execute(device, operation)
    show(output, None, {"nr_zones": number, "zone_list": [_zone(*one) for one in found]})


@command(
    "zns zone-append",
    NSID,
    (("-s", "--zslba"), "zslba", int, 0, "The zone's first block."),
    (("-z", "--data-size"), "data_size", int, None, "Bytes of data.  [default: all there are]"),
    (("-y", "--metadata-size"), "metadata_size", int, 0, "Bytes of metadata in a separate buffer."),
    (("-d", "--data"), "data", _FILE, None, "What is appended.  [default: stdin]"),
    (("-M", "--metadata"), "metadata", _FILE, None, "File of the metadata."),
    LIMITED,
    FUA,
    (("-r", "--ref-tag"), "reftag", int, 0, "Reference tag."),
    (("-m", "--app-tag-mask"), "apptag_mask", click.IntRange(0, 0xFFFF), 0, "Application tag mask."),
    (("-a", "--app-tag"), "apptag", click.IntRange(0, 0xFFFF), 0, "Application tag."),
    (("-p", "--prinfo"), "prinfo", click.IntRange(0, 15), 0, "PRACT and checks."),
    (("-P", "--piremap"), "piremap", bool, False, "The controller adjusts the reference tags."),
    (("-t", "--latency"), "latency", bool, False, "Show how long it took."),
)
def zone_append(
    device: str | None,
    nsid: int | None,
    zslba: int,
    data_size: int | None,
    metadata_size: int,
    data: Path | None,
    metadata: Path | None,
    limited: bool,
    fua: bool,
    reftag: int,
    latency: bool,
    **more: Any,
) -> None:
    """Append data to a zone of DEVICE, and show their place."""
    whole = (data.read_bytes() if data is not None else sys.stdin.buffer.read())[:data_size]
    plain = not (metadata_size or limited or fua or reftag or any(more.values()))

    async def operation(controller: Any) -> tuple[int, float]:
        ns = namespace(controller, nsid)
        began = time.perf_counter()
        if plain and hasattr(controller, "alloc"):
            zoned = await ZonedNamespace.of(ns)
            return await zoned.append(zslba, whole), time.perf_counter() - began
        if not whole or len(whole) % ns.block_size:
            raise click.UsageError(f"{len(whole)} bytes are no positive multiple of the block size of {ns.block_size}")
        made = commands.zone_append(ns.nsid, zslba, len(whole) // ns.block_size, fua, limited, **more)
        made = await tagged(controller, ns, made, reftag, 0)
        if not metadata_size:
            completion = await ns.submit(made, whole)
            return completion.dw0 | completion.dw1 << 32, time.perf_counter() - began
        if metadata is None:
            raise click.UsageError("--metadata is needed for --metadata-size")
        with controller.alloc(metadata_size) as memory:
            memory[:metadata_size] = metadata.read_bytes()[:metadata_size].ljust(metadata_size, b"\0")
            completion = await ns.submit(attrs.evolve(made, mptr=memory.iova), whole)
        return completion.dw0 | completion.dw1 << 32, time.perf_counter() - began

    lba, spent = execute(device, operation)
    if latency:
        say(f" latency: zone append: {spent * 1e6:.0f} us")
    say(f"Success appended data to LBA {lba:x}")


_ALL: Option = (("-a", "--select-all"), "everything", bool, False, "All zones that it fits.")


def _manage(device: str | None, nsid: int | None, start: int, action: int, data: bytes = b"", **more: Any) -> int:
    async def operation(controller: Any) -> int:
        ns = namespace(controller, nsid)
        made = commands.zone_management_send(ns.nsid, start, action, nbytes=len(data), **more)
        await ns.submit(made, data or None)
        number: int = ns.nsid
        return number

    sent: int = execute(device, operation)
    return sent


def _zone_action(name: str, action: ZoneSendAction, about: str, destroys: bool) -> None:
    def act(
        device: str | None,
        nsid: int | None,
        start: int,
        everything: bool,
        force: bool = False,
        zrwaa: bool = False,
    ) -> None:
        if destroys:
            ask(device, name, force)
        sent = _manage(device, nsid, start, action, all_zones=everything, option=zrwaa)
        say(f"{name}: Success, action:{int(action)} zone:{start:x} all:{int(everything)} nsid:{sent}")

    act.__doc__ = about
    options: list[Option] = [NSID, _START, _ALL]
    if action is ZoneSendAction.OPEN:
        options.append((("-r", "--zrwaa"), "zrwaa", bool, False, "With a zone random write area."))
    command(f"zns {name}", *options, *([FORCE] if destroys else []))(act)


_zone_action("open-zone", ZoneSendAction.OPEN, "Open a zone of DEVICE.", False)
_zone_action("close-zone", ZoneSendAction.CLOSE, "Close a zone of DEVICE.", False)
_zone_action("finish-zone", ZoneSendAction.FINISH, "Make a zone of DEVICE full.", False)
_zone_action("reset-zone", ZoneSendAction.RESET, "Make a zone of DEVICE empty: its data are lost.", True)
_zone_action("offline-zone", ZoneSendAction.OFFLINE, "Take a read only zone of DEVICE offline.", True)


@command(
    "zns set-zone-desc",
    NSID,
    _START,
    (("-r", "--zrwaa"), "zrwaa", bool, False, "With a zone random write area."),
    (("-d", "--data"), "data", _FILE, None, "The zone descriptor extension.  [default: stdin]"),
)
def set_zone_desc(device: str | None, nsid: int | None, start: int, zrwaa: bool, data: Path | None) -> None:
    """Attach a descriptor extension to an empty zone of DEVICE."""
    source = data.read_bytes() if data is not None else sys.stdin.buffer.read()

    async def operation(controller: Any) -> int:
        ns = namespace(controller, nsid)
        _, size = await _zone_format(controller, ns)
        if not size:
            raise click.ClickException("this namespace has no zone descriptor extensions")
        if len(source) > size:
            raise click.UsageError(f"{len(source)} bytes are more than the {size} of a zone descriptor extension")
        made = commands.zone_management_send(
            ns.nsid, start, ZoneSendAction.SET_DESCRIPTOR_EXTENSION, option=zrwaa, nbytes=size
        )
        await ns.submit(made, source.ljust(size, b"\0"))
        number: int = ns.nsid
        return number

    say(f"set-zone-desc: Success, zone:{start:x} nsid:{execute(device, operation)}")


@command(
    "zns zrwa-flush-zone",
    NSID,
    (("-l", "--lba"), "lba", int, None, "Up to which block."),
)
def zrwa_flush_zone(device: str | None, nsid: int | None, lba: int | None) -> None:
    """Commit the random write area of a zone of DEVICE up to a block."""
    if lba is None:
        raise click.UsageError("--lba is needed")
    sent = _manage(device, nsid, lba, ZoneSendAction.FLUSH_ZRWA)
    say(f"zrwa-flush-zone: Success, lba:{lba:#x} nsid:{sent}")


@command(
    "zns zone-mgmt-recv",
    NSID,
    _START,
    (("-z", "--zra"), "action", int, 0, "Zone receive action: 0 report, 1 extended report."),
    (("-S", "--zrasf"), "option", int, 0, "Action specific: which zones."),
    (("-p", "--partial"), "partial", bool, False, "Count the zones in the buffer."),
    (("-l", "--data-len"), "length", int, 4096, "Bytes of data."),
    output=True,
)
def zone_mgmt_recv(
    device: str | None,
    nsid: int | None,
    start: int,
    action: int,
    option: int,
    partial: bool,
    length: int,
    output: str,
    human: bool,
) -> None:
    """Show the answer to Zone Management Receive of a namespace of DEVICE."""

    async def operation(controller: Any) -> bytes:
        ns = namespace(controller, nsid)
        with builder_arguments():
            made = commands.zone_management_receive(ns.nsid, start, length, action, option=option, partial=partial)
        data: bytes = (await ns.submit(made)).data
        return data

    data = execute(device, operation)
    show(output, data, {"zra": action, "data": data.hex()}, text=lambda: hexdump(data))


@command(
    "zns zone-mgmt-send",
    NSID,
    _START,
    (("--zsaso",), "zsaso", bool, False, "Action specific option."),
    _ALL,
    (("-z", "--zsa"), "action", click.IntRange(0, 255), None, "Zone send action."),
    (("-l", "--data-len"), "length", int, 0, "Bytes of data."),
    (("-d", "--data"), "data", _FILE, None, "What is sent."),
    FORCE,
)
def zone_mgmt_send(
    device: str | None,
    nsid: int | None,
    start: int,
    zsaso: bool,
    everything: bool,
    action: int | None,
    length: int,
    data: Path | None,
    force: bool,
) -> None:
    """Send any zone action to a namespace of DEVICE."""
    if action is None:
        raise click.UsageError("--zsa is needed")
    if length and data is None:
        raise click.UsageError("--data is needed for --data-len")
    if action in (ZoneSendAction.RESET, ZoneSendAction.OFFLINE, ZoneSendAction.FINISH):
        ask(device, f"zone action {action:#x}", force)
    payload = data.read_bytes()[:length].ljust(length, b"\0") if data is not None and length else b""
    sent = _manage(device, nsid, start, action, payload, all_zones=everything, option=zsaso)
    say(f"zone-mgmt-send: Success, action:{action} zone:{start:x} all:{int(everything)} nsid:{sent}")
