"""I/O commands beyond read, write and flush: blocks, ranges, reservations, zones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from nvme_async.cli.nvme.build import FORCE, ask, command, execute
from nvme_async.cli.nvme.output import plain, show
from nvme_async.cli.nvme.target import first_namespace
from nvme_async.driver.zoned import ZonedNamespace
from nvme_async.spec import commands
from nvme_async.spec.opcodes import DsmAttribute, ZoneReportOption, ZoneSendAction
from nvme_async.spec.reservations import ReservationReport

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NSID = (("-n", "--namespace-id"), "nsid", int, None, "Namespace.  [default: the first]")
START = (("-s", "--start-block"), "start", int, 0, "First logical block.")
COUNT = (("-c", "--block-count"), "count", int, 0, "Number of blocks, zero-based.")


def namespace(controller: Any, nsid: int | None) -> Any:
    chosen = first_namespace(controller, nsid)
    if chosen not in controller.namespaces:
        raise click.ClickException(f"namespace {chosen} of {controller.uri} is not active")
    return controller.namespaces[chosen]


def _send(device: str | None, nsid: int | None, make: Any, payload: Any = None) -> Any:
    async def operation(controller: Any) -> Any:
        ns = namespace(controller, nsid)
        return await ns.submit(make(ns), payload)

    return execute(device, operation)


def _numbers(text: str | None, name: str) -> list[int]:
    try:
        return [int(part, 0) for part in (text or "").split(",") if part]
    except ValueError:
        raise click.UsageError(f"--{name} {text!r}: give numbers, with commas between them") from None


@command("write-zeroes", NSID, START, COUNT, (("-d", "--deac"), "deac", bool, False, "They may be deallocated."), FORCE)
def write_zeroes(device: str | None, nsid: int | None, start: int, count: int, deac: bool, force: bool) -> None:
    """Make blocks of DEVICE read as zeroes."""
    ask(device, f"write-zeroes of {count + 1} blocks", force)
    _send(device, nsid, lambda ns: commands.write_zeroes(ns.nsid, start, count + 1, deac=deac))
    click.echo("NVME Write Zeroes Success")


@command("write-uncor", NSID, START, COUNT, FORCE)
def write_uncor(device: str | None, nsid: int | None, start: int, count: int, force: bool) -> None:
    """Mark blocks of DEVICE as unreadable."""
    ask(device, f"write-uncor of {count + 1} blocks", force)
    _send(device, nsid, lambda ns: commands.write_uncorrectable(ns.nsid, start, count + 1))
    click.echo("NVME Write Uncorrectable Success")


@command("verify", NSID, START, COUNT)
def verify(device: str | None, nsid: int | None, start: int, count: int) -> None:
    """Make DEVICE read and check blocks without transferring them."""
    _send(device, nsid, lambda ns: commands.verify(ns.nsid, start, count + 1))
    click.echo("NVME Verify Success")


@command(
    "compare",
    NSID,
    START,
    COUNT,
    (("-d", "--data"), "data", _FILE, None, "What to compare with.  [default: stdin]"),
)
def compare(device: str | None, nsid: int | None, start: int, count: int, data: Path | None) -> None:
    """Compare blocks of DEVICE with a file."""
    whole = data.read_bytes() if data is not None else sys.stdin.buffer.read()

    async def operation(controller: Any) -> None:
        ns = namespace(controller, nsid)
        nbytes = (count + 1) * ns.block_size
        if len(whole) < nbytes:
            raise click.UsageError(f"{len(whole)} bytes are less than {count + 1} blocks of {ns.block_size}")
        await ns.submit(commands.compare(ns.nsid, start, count + 1), whole[:nbytes])

    execute(device, operation)
    click.echo("compare: Success")


@command(
    "dsm",
    NSID,
    (("-a", "--ctx-attrs"), "attributes", str, None, "Context attributes, 1,2,…"),
    (("-b", "--blocks"), "blocks", str, None, "Blocks of each range."),
    (("-s", "--slbs"), "starts", str, None, "First block of each range."),
    (("-d", "--ad"), "deallocate", bool, False, "Deallocate them."),
    (("-w", "--idw"), "write", bool, False, "They will be written as a whole."),
    (("-r", "--idr"), "read", bool, False, "They will be read as a whole."),
    FORCE,
)
def dsm(
    device: str | None,
    nsid: int | None,
    attributes: str | None,
    blocks: str | None,
    starts: str | None,
    deallocate: bool,
    write: bool,
    read: bool,
    force: bool,
) -> None:
    """Declare the use of blocks of DEVICE, or that they are unused."""
    counts, firsts = _numbers(blocks, "blocks"), _numbers(starts, "slbs")
    if not counts or len(counts) != len(firsts):
        raise click.UsageError("--blocks and --slbs are needed, with the same number of values")
    if deallocate:
        ask(device, f"deallocation of {sum(counts)} blocks", force)
    flags = (
        DsmAttribute.DEALLOCATE * deallocate | DsmAttribute.INTEGRAL_WRITE * write | DsmAttribute.INTEGRAL_READ * read
    )
    contexts = _numbers(attributes, "ctx-attrs")
    payload = commands.dsm_ranges(list(zip(firsts, counts, strict=True)), contexts[0] if contexts else 0)
    _send(device, nsid, lambda ns: commands.dataset_management(ns.nsid, len(counts), flags), payload)
    click.echo("NVMe DSM: success")


@command(
    "copy",
    NSID,
    (("-d", "--sdlba"), "to", int, None, "Where it goes."),
    (("-s", "--slbs"), "starts", str, None, "First block of each source."),
    (("-b", "--blocks"), "blocks", str, None, "Blocks of each source, zero-based."),
    FORCE,
)
def copy(
    device: str | None, nsid: int | None, to: int | None, starts: str | None, blocks: str | None, force: bool
) -> None:
    """Copy blocks within DEVICE."""
    counts, firsts = _numbers(blocks, "blocks"), _numbers(starts, "slbs")
    if to is None or not counts or len(counts) != len(firsts):
        raise click.UsageError("--sdlba, --slbs and --blocks are needed, with the same number of values")
    ask(device, f"copy over {sum(counts) + len(counts)} blocks", force)
    ranges = [(first, count + 1) for first, count in zip(firsts, counts, strict=True)]
    _send(device, nsid, lambda ns: commands.copy(ns.nsid, to, len(ranges)), commands.copy_descriptors(ranges))
    click.echo("NVMe Copy: success")


# -- reservations ----------------------------------------------------------------------------------

_CRKEY = (("-c", "--crkey"), "crkey", int, 0, "Current key.")
_IEKEY = (("-i", "--iekey"), "iekey", bool, False, "Ignore the existing key.")
_RTYPE = (("-t", "--rtype"), "rtype", click.IntRange(0, 6), 0, "Type of the reservation.")


@command(
    "resv-register",
    NSID,
    _CRKEY,
    (("-k", "--nrkey"), "nrkey", int, 0, "New key."),
    (("-r", "--rrega"), "action", click.IntRange(0, 2), 0, "0 register, 1 unregister, 2 replace."),
    (("-p", "--cptpl"), "cptpl", click.IntRange(0, 3), 0, "Change of persistence through power loss."),
    _IEKEY,
)
def resv_register(
    device: str | None, nsid: int | None, crkey: int, nrkey: int, action: int, cptpl: int, iekey: bool
) -> None:
    """Register a reservation key with a namespace of DEVICE."""
    payload = commands.reservation_register_payload(crkey, nrkey)
    _send(device, nsid, lambda ns: commands.reservation_register(ns.nsid, action, iekey, cptpl), payload)
    click.echo("NVME Reservation success")


@command(
    "resv-acquire",
    NSID,
    _CRKEY,
    (("-p", "--prkey"), "prkey", int, 0, "Key to preempt."),
    _RTYPE,
    (("-a", "--racqa"), "action", click.IntRange(0, 2), 0, "0 acquire, 1 preempt, 2 preempt and abort."),
    _IEKEY,
)
def resv_acquire(
    device: str | None, nsid: int | None, crkey: int, prkey: int, rtype: int, action: int, iekey: bool
) -> None:
    """Acquire a reservation of a namespace of DEVICE."""
    payload = commands.reservation_acquire_payload(crkey, prkey)
    _send(device, nsid, lambda ns: commands.reservation_acquire(ns.nsid, action, rtype, iekey), payload)
    click.echo("NVME Reservation Acquire success")


@command(
    "resv-release",
    NSID,
    _CRKEY,
    _RTYPE,
    (("-a", "--rrela"), "action", click.IntRange(0, 1), 0, "0 release, 1 clear."),
    _IEKEY,
)
def resv_release(device: str | None, nsid: int | None, crkey: int, rtype: int, action: int, iekey: bool) -> None:
    """Release a reservation of a namespace of DEVICE."""
    payload = commands.reservation_release_payload(crkey)
    _send(device, nsid, lambda ns: commands.reservation_release(ns.nsid, action, rtype, iekey), payload)
    click.echo("NVME Reservation Release success")


@command("resv-report", NSID, (("-e", "--eds"), "extended", bool, False, "Extended data structure."), output=True)
def resv_report(device: str | None, nsid: int | None, extended: bool, output: str, human: bool) -> None:
    """Show the registrants of a namespace of DEVICE."""
    completion = _send(device, nsid, lambda ns: commands.reservation_report(ns.nsid, 4096, extended))
    report = ReservationReport.decode(completion.data, extended=extended)
    shown = {
        "gen": report.gen,
        "rtype": int(report.rtype),
        "regctl": report.regctl,
        "ptpls": int(report.ptpls),
        "regctls": plain(report.registrants),
    }
    show(output, completion.data, shown)


# -- zones -----------------------------------------------------------------------------------------


@command(
    "zns report-zones",
    NSID,
    START,
    (("-d", "--descs"), "descs", int, None, "Maximum number.  [default: all]"),
    (("-S", "--state"), "state", click.IntRange(0, 7), 0, "Only zones in that state; 0: all."),
    output=True,
)
def report_zones(
    device: str | None, nsid: int | None, start: int, descs: int | None, state: int, output: str, human: bool
) -> None:
    """List the zones of a namespace of DEVICE."""

    async def operation(controller: Any) -> Any:
        zoned = await ZonedNamespace.of(namespace(controller, nsid))
        found: list[Any] = []
        async for zone in zoned.zones(start, option=ZoneReportOption(state)):
            if descs is not None and len(found) >= descs:
                break
            found.append(zone)
        return found

    zones = execute(device, operation)
    shown = [
        {
            "slba": zone.zslba,
            "wp": zone.wp,
            "cap": zone.zcap,
            "state": zone.state.name,
            "type": "SEQWRITE_REQ",
            "attrs": zone.za,
            "attrs_info": zone.zai,
        }
        for zone in zones
    ]
    show(output, None, {"nr_zones": len(shown), "zone_list": shown})


@command(
    "zns zone-append",
    NSID,
    (("-s", "--zslba"), "zslba", int, 0, "The zone's first block."),
    (("-d", "--data"), "data", _FILE, None, "What is appended.  [default: stdin]"),
)
def zone_append(device: str | None, nsid: int | None, zslba: int, data: Path | None) -> None:
    """Append data to a zone of DEVICE, and show their place."""
    whole = data.read_bytes() if data is not None else sys.stdin.buffer.read()

    async def operation(controller: Any) -> int:
        zoned = await ZonedNamespace.of(namespace(controller, nsid))
        return await zoned.append(zslba, whole)

    click.echo(f"Success appended data to LBA {execute(device, operation):x}")


def _zone_action(name: str, action: ZoneSendAction, about: str, destroys: bool) -> None:
    def act(device: str | None, nsid: int | None, start: int, everything: bool, force: bool = False) -> None:
        if destroys:
            ask(device, name, force)

        async def operation(controller: Any) -> None:
            ns = namespace(controller, nsid)
            await ns.submit(commands.zone_management_send(ns.nsid, start, action, all_zones=everything))

        execute(device, operation)
        click.echo(f"{name}: Success, action:{int(action)} zone:{start:x} all:{int(everything)} nsid:{nsid or 1}")

    act.__doc__ = about
    options = [
        NSID,
        (("-s", "--start-lba"), "start", int, 0, "The zone's first block."),
        (("-a", "--select-all"), "everything", bool, False, "All zones that it fits."),
    ]
    command(f"zns {name}", *options, *([FORCE] if destroys else []))(act)


_zone_action("open-zone", ZoneSendAction.OPEN, "Open a zone of DEVICE.", False)
_zone_action("close-zone", ZoneSendAction.CLOSE, "Close a zone of DEVICE.", False)
_zone_action("finish-zone", ZoneSendAction.FINISH, "Make a zone of DEVICE full.", False)
_zone_action("reset-zone", ZoneSendAction.RESET, "Make a zone of DEVICE empty: its data are lost.", True)
_zone_action("offline-zone", ZoneSendAction.OFFLINE, "Take a read only zone of DEVICE offline.", True)
