"""Commands that change a drive: formatting, erasing, namespaces, firmware, tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nvme_async.cli.nvme.build import FORCE, ask, builder_arguments, command, execute, progress, say
from nvme_async.cli.nvme.creation import create
from nvme_async.cli.nvme.directives import numbers
from nvme_async.cli.nvme.output import show
from nvme_async.cli.nvme.shapes_logs import lba_status
from nvme_async.cli.nvme.target import first_namespace
from nvme_async.driver import management
from nvme_async.spec import commands
from nvme_async.spec.opcodes import (
    NSID_ALL,
    FirmwareCommitAction,
    SanitizeAction,
    SecureErase,
    SelfTest,
)

NSID = (("-n", "--namespace-id"), "nsid", int, None, "Namespace.  [default: the first]")


@command(
    "format",
    NSID,
    (("-l", "--lbaf"), "lbaf", int, None, "Index of the LBA format.  [default: the present one]"),
    (("-b", "--block-size"), "block_size", int, None, "Instead of --lbaf: bytes of a block."),
    (("-s", "--ses"), "ses", click.IntRange(0, 2), 0, "Secure erase: 1 user data, 2 cryptographic."),
    (("-i", "--pi"), "pi", click.IntRange(0, 3), 0, "Type of protection information."),
    (("-p", "--pil"), "pil", click.IntRange(0, 1), 0, "1: it is the first of the metadata."),
    (("-m", "--ms"), "ms", click.IntRange(0, 1), 0, "1: metadata at the end of each block."),
    (("-r", "--reset"), "again", bool, False, "Reset the controller afterwards."),
    FORCE,
)
def format_nvm(
    device: str | None,
    nsid: int | None,
    lbaf: int | None,
    block_size: int | None,
    ses: int,
    pi: int,
    pil: int,
    ms: int,
    again: bool,
    force: bool,
) -> None:
    """Format a namespace of DEVICE: destroys its data."""
    ask(device, "format", force)

    async def operation(controller: Any) -> int:
        chosen = first_namespace(controller, nsid)
        with progress(f"format of namespace {chosen}") as advance:
            await management.format_namespace(
                controller,
                chosen,
                lbaf,
                block_size=block_size,
                erase=SecureErase(ses),
                pi=pi,
                pi_first=bool(pil),
                extended=bool(ms),
                progress=advance,
            )
        if again:
            await controller.reset("requested after a format")
        return chosen

    say(f"Success formatting namespace:{execute(device, operation):x}")


@command(
    "sanitize",
    (
        ("-a", "--sanact"),
        "action",
        click.Choice(
            ["1", "2", "3", "4", "exit-failure", "start-block-erase", "start-overwrite", "start-crypto-erase"]
        ),
        None,
        "What to do.",
    ),
    (("-u", "--ause"), "ause", bool, False, "After a failure the failure mode may be left."),
    (("-d", "--no-dealloc"), "keep", bool, False, "Don't deallocate afterwards."),
    (("-i", "--oipbp"), "invert", bool, False, "Overwrite: invert the pattern between passes."),
    (("-n", "--owpass"), "passes", click.IntRange(1, 16), 1, "Overwrite: passes."),
    (("-p", "--ovrpat"), "pattern", int, 0, "Overwrite: 32-bit pattern."),
    (("-e", "--emvs"), "verification", bool, False, "Enter the media verification state afterwards."),
    (("--no-wait",), "no_wait", bool, False, "Return when it has begun, as nvme-cli does."),
    FORCE,
)
def sanitize(
    device: str | None,
    action: str | None,
    ause: bool,
    keep: bool,
    invert: bool,
    passes: int,
    pattern: int,
    verification: bool,
    no_wait: bool,
    force: bool,
) -> None:
    """Erase all user data of DEVICE permanently."""
    if verification:
        raise click.UsageError("--emvs is not supported: the media verification state keeps I/O away without end")
    names = {"exit-failure": 1, "start-block-erase": 2, "start-overwrite": 3, "start-crypto-erase": 4}
    if action is None:
        raise click.UsageError("--sanact is needed")
    chosen = SanitizeAction(names.get(action) or int(action))
    if chosen != SanitizeAction.EXIT_FAILURE_MODE:
        ask(device, "sanitize", force)

    async def operation(controller: Any) -> None:
        with progress("sanitize") as advance:
            await management.sanitize(
                controller,
                chosen,
                unrestricted=ause,
                keep_allocated=keep,
                invert=invert,
                passes=passes,
                pattern=pattern,
                wait=not no_wait,
                progress=advance,
            )

    execute(device, operation)


@command(
    "device-self-test",
    (("-n", "--namespace-id"), "nsid", int, NSID_ALL, "Namespace to include.  [default: all]"),
    (
        ("-s", "--self-test-code"),
        "code",
        click.Choice(["1", "2", "e", "f", "0x1", "0x2", "0xe", "0xf"]),
        "1",
        "1h short, 2h extended, Fh abort.",
    ),
    (("-w", "--wait"), "wait", bool, False, "Wait for the end; interrupted, the test is aborted."),
)
def device_self_test(device: str | None, nsid: int, code: str, wait: bool) -> None:
    """Run a self-test of DEVICE during its I/O."""
    kind = SelfTest(int(code, 16))

    async def operation(controller: Any) -> str:
        if not wait or kind == SelfTest.ABORT:
            await controller.admin(commands.device_self_test(kind, nsid))
            return (
                "Aborting device self-test operation"
                if kind == SelfTest.ABORT
                else f"{kind.name.capitalize()} Device self-test started"
            )
        with progress("self-test") as advance:
            result = await management.self_test(controller, kind, nsid, progress=advance)
        if result.dsts & 0xF:
            raise click.ClickException(f"the self-test failed: {result.result.name.replace('_', ' ').lower()}")
        return f"{kind.name.capitalize()} Device self-test passed"

    say(execute(device, operation))


@command(
    "create-ns",
    (("-s", "--nsze"), "nsze", int, None, "Blocks."),
    (("-c", "--ncap"), "ncap", int, None, "Blocks that may be in use.  [default: all]"),
    (("-f", "--flbas"), "flbas", int, None, "Index of the LBA format."),
    (("-b", "--block-size"), "block_size", int, None, "Instead of --flbas: bytes of a block."),
    (("-d", "--dps"), "dps", int, 0, "Data protection settings."),
    (("-m", "--nmic"), "nmic", int, 0, "1: shared between controllers."),
    (("-a", "--anagrp-id"), "ana", int, 0, "ANA group."),
    (("-i", "--nvmset-id"), "nvmset", int, 0, "NVM set."),
    (("-e", "--endg-id"), "endgid", int, 0, "Endurance group."),
    (("-y", "--csi"), "csi", int, 0, "I/O command set."),
    (("-l", "--lbstm"), "lbstm", int, 0, "Storage tag mask."),
    (("-n", "--nphndls"), "nphndls", int, 0, "Placement handles.  [default: as many as --phndls]"),
    (("-p", "--phndls"), "phndls", str, None, "Reclaim unit handles of the placement handles: 0,1."),
    (("-S", "--nsze-si"), "nsze_si", str, None, "Instead of --nsze: the size, as 10M or 1GiB."),
    (("-C", "--ncap-si"), "ncap_si", str, None, "Instead of --ncap, likewise."),
    (("-z", "--azr"), "azr", bool, False, "Zoned: allocate zone resources."),
    (("-r", "--rar"), "rar", int, 0, "Zoned: active resources."),
    (("-O", "--ror"), "ror", int, 0, "Zoned: open resources."),
    (("-u", "--rnumzrwa"), "rnumzrwa", int, 0, "Zoned: zone random write areas."),
    (("--attach",), "attach", bool, False, "Attach it to DEVICE, too."),
)
def create_ns(device: str | None, flbas: int | None, attach: bool, **more: Any) -> None:
    """Create a namespace of DEVICE."""
    if (more["nsze"] is None) == (more["nsze_si"] is None):
        raise click.UsageError("--nsze is needed, or --nsze-si")
    handles = numbers(more["phndls"], "phndls")
    if more["nphndls"] not in (0, len(handles)):
        raise click.UsageError(f"--nphndls is {more['nphndls']}, --phndls has {len(handles)}")

    async def operation(controller: Any) -> int:
        return await create(controller, flbas, handles, attach, more)

    say(f"create-ns: Success, created nsid:{execute(device, operation)}")


_CONTROLLERS = (("-c", "--controllers"), "controllers", str, None, "Controller identifiers: 0,1.  [default: this one]")


def _needed(nsid: int | None) -> int:
    if nsid is None:
        raise click.UsageError("--namespace-id is needed")
    return nsid


def _ids(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part, 0) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--controllers {text!r}: give numbers, with commas between them") from None


@command("attach-ns", NSID, _CONTROLLERS)
def attach_ns(device: str | None, nsid: int | None, controllers: str | None) -> None:
    """Attach a namespace of DEVICE to controllers."""
    chosen, ids = _needed(nsid), _ids(controllers)
    execute(device, lambda controller: management.attach_namespace(controller, chosen, ids))
    say(f"attach-ns: Success, nsid:{chosen}")


@command("detach-ns", NSID, _CONTROLLERS)
def detach_ns(device: str | None, nsid: int | None, controllers: str | None) -> None:
    """Detach a namespace of DEVICE from controllers."""
    chosen, ids = _needed(nsid), _ids(controllers)
    execute(device, lambda controller: management.detach_namespace(controller, chosen, ids))
    say(f"detach-ns: Success, nsid:{chosen}")


@command("delete-ns", NSID, FORCE)
def delete_ns(device: str | None, nsid: int | None, force: bool) -> None:
    """Delete a namespace of DEVICE with its data."""
    chosen = _needed(nsid)
    ask(device, f"delete-ns of namespace {chosen}", force)
    execute(device, lambda controller: management.delete_namespace(controller, chosen))
    say(f"delete-ns: Success, deleted nsid:{chosen}")


@command(
    "fw-download",
    (("-f", "--fw"), "path", click.Path(exists=True, dir_okay=False, path_type=Path), None, "The image."),
    (("-x", "--xfer"), "xfer", int, None, "Bytes of one command.  [default: what fits]"),
    (("-O", "--offset"), "offset", int, 0, "Where in the image area it goes, in dwords."),
    (("-p", "--progress"), "progress_wanted", bool, False, "No effect: a terminal always shows it."),
    (("-i", "--ignore-ovr"), "ignore", bool, False, "Ignore an overlap that the controller reports."),
    (("-c", "--commit"), "action", click.IntRange(0, 3), None, "And commit it: as --action of fw-commit."),
    (("-s", "--slot"), "slot", click.IntRange(0, 7), 0, "Slot of --commit."),
)
def fw_download(
    device: str | None,
    path: Path | None,
    xfer: int | None,
    offset: int,
    progress_wanted: bool,
    ignore: bool,
    action: int | None,
    slot: int,
) -> None:
    """Send a firmware image to DEVICE.

    A controller discards it when it is reset, which happens when DEVICE is opened: a separate
    fw-commit finds it only with --attach. --commit does both.
    """
    if path is None:
        raise click.UsageError("--fw is needed")
    image = path.read_bytes()

    async def operation(controller: Any) -> management.Activation | None:
        with progress("download") as advance:
            await management.download_firmware(
                controller, image, chunk=xfer, offset=4 * offset, ignore_overlap=ignore, progress=advance
            )
        if action is not None:
            return await management.commit_firmware(controller, slot, FirmwareCommitAction(action))
        return None

    needed = execute(device, operation)
    say("Firmware download success")
    if action is not None:
        _committed(action, slot, needed)


@command(
    "fw-commit",
    (("-s", "--slot"), "slot", click.IntRange(0, 7), 0, "Slot; 0: the controller chooses."),
    (
        ("-a", "--action"),
        "action",
        click.IntRange(0, 7),
        0,
        "0 store, 1 and activate at a reset, 2 activate what is there, 3 now.",
    ),
    (("-b", "--bpid"), "bpid", click.IntRange(0, 1), 0, "Boot partition."),
)
def fw_commit(device: str | None, slot: int, action: int, bpid: int) -> None:
    """Store the downloaded firmware image in DEVICE, or activate one."""

    async def operation(controller: Any) -> management.Activation:
        return await management.commit_firmware(controller, slot, FirmwareCommitAction(action), boot_partition=bpid)

    _committed(action, slot, execute(device, operation))


def _committed(action: int, slot: int, needed: management.Activation) -> None:
    more = "" if needed is management.Activation.NONE else f", but firmware requires {needed.value}"
    say(f"Success committing firmware action:{action} slot:{slot}{more}")


@command(
    "get-lba-status",
    NSID,
    (("-s", "--start-lba"), "start", int, 0, "First block."),
    (("-m", "--max-dw"), "dwords", int, 1023, "Dwords of the answer, zero-based."),
    (("-a", "--action"), "action", int, 0x11, "10h scan, 11h what is known."),
    (("-l", "--range-len"), "length", int, 0, "How many blocks; 0: all."),
    output=True,
)
def get_lba_status(
    device: str | None, nsid: int | None, start: int, dwords: int, action: int, length: int, output: str, human: bool
) -> None:
    """Show which blocks of a namespace of DEVICE can't be read."""

    async def operation(controller: Any) -> bytes:
        made = commands.get_lba_status(first_namespace(controller, nsid), start, 4 * (dwords + 1), length, action)
        data: bytes = (await controller.admin(made)).data
        return data

    with builder_arguments():
        data = execute(device, operation)
        shown = lba_status(data)
    show(output, data, shown)


@command("reset")
def reset(device: str | None) -> None:
    """Reset the controller DEVICE."""
    execute(device, lambda controller: controller.reset())


@command("ns-rescan")
def ns_rescan(device: str | None) -> None:
    """Make the owner of DEVICE read its namespaces again."""
    execute(device, lambda controller: controller.rescan())
