"""Reservation commands."""

from __future__ import annotations

from typing import Any

import click

from nvme_async.cli.nvme.blocks import NSID, send
from nvme_async.cli.nvme.build import command, execute, say
from nvme_async.cli.nvme.directives import namespace
from nvme_async.cli.nvme.output import show
from nvme_async.cli.nvme.shapes_logs import reservation_report
from nvme_async.spec import commands

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
    send(device, nsid, lambda ns: commands.reservation_register(ns.nsid, action, iekey, cptpl), payload)
    say("NVME Reservation success")


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
    send(device, nsid, lambda ns: commands.reservation_acquire(ns.nsid, action, rtype, iekey), payload)
    say("NVME Reservation Acquire success")


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
    send(device, nsid, lambda ns: commands.reservation_release(ns.nsid, action, rtype, iekey), payload)
    say("NVME Reservation Release success")


@command(
    "resv-report",
    NSID,
    (("-d", "--numd"), "numd", int, 1023, "Dwords of the answer, zero-based."),
    (("-e", "--eds"), "extended", bool, False, "Extended data structure."),
    output=True,
)
def resv_report(device: str | None, nsid: int | None, numd: int, extended: bool, output: str, human: bool) -> None:
    """Show the registrants of a namespace of DEVICE."""

    async def operation(controller: Any) -> tuple[bytes, bool]:
        ns = namespace(controller, nsid)
        # With 128-bit host identifiers there is no other structure (Base 2.1, 7.8).
        wide = extended or bool(controller.identify.ctratt & 1)
        try:
            made = commands.reservation_report(ns.nsid, 4 * (numd + 1), wide)
        except ValueError as error:
            raise click.UsageError(f"--numd: {error}") from None
        data: bytes = (await ns.submit(made)).data
        return data, wide

    data, wide = execute(device, operation)
    try:
        shown = reservation_report(data, extended=wide)
    except ValueError as error:
        raise click.UsageError(f"--numd {numd}: {error}") from None
    show(output, data, shown)
