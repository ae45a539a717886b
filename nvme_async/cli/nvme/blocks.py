"""I/O commands on blocks, with nvme-cli's options: tags, checks, directives."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import click

from nvme_async.cli.nvme.build import FORCE, ask, builder_arguments, command, execute, say
from nvme_async.cli.nvme.directives import namespace, numbers
from nvme_async.cli.nvme.page import Option, read_identify
from nvme_async.driver.protection import Format
from nvme_async.errors import CommandError
from nvme_async.spec import commands
from nvme_async.spec.commands import Command, CopySource
from nvme_async.spec.identify import IdentifyNamespaceNvm
from nvme_async.spec.opcodes import Cns, DsmAttribute

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NSID: Option = (("-n", "--namespace-id"), "nsid", int, None, "Namespace.  [default: the first]")
START: Option = (("-s", "--start-block"), "start", int, 0, "First logical block.")
COUNT: Option = (("-c", "--block-count"), "count", int, 0, "Number of blocks, zero-based.")
LIMITED: Option = (("-l", "--limited-retry"), "limited", bool, False, "Limited retry.")
FUA: Option = (("-f", "--force-unit-access"), "fua", bool, False, "Set FUA: the media itself, not a cache.")
PRINFO: Option = (("-p", "--prinfo"), "prinfo", click.IntRange(0, 15), 0, "PRACT (8) and checks (4 guard, 2, 1).")
REF_TAG: Option = (("-r", "--ref-tag"), "reftag", int, 0, "Reference tag of the first block.")
APP_MASK: Option = (("-m", "--app-tag-mask"), "apptag_mask", click.IntRange(0, 0xFFFF), 0, "Application tag mask.")
APP_TAG: Option = (("-a", "--app-tag"), "apptag", click.IntRange(0, 0xFFFF), 0, "Application tag.")
CHECK: Option = (("-C", "--storage-tag-check"), "stc", bool, False, "Check the storage tag.")


def storage_tag(letter: str) -> Option:
    return ((f"-{letter}", "--storage-tag"), "storage", int, 0, "Storage tag.")


def directive(kind: str, spec: str) -> tuple[Option, Option]:
    return (
        ((f"-{kind}", "--dir-type"), "dtype", click.IntRange(0, 15), 0, "Directive type."),
        ((f"-{spec}", "--dir-spec"), "dspec", click.IntRange(0, 0xFFFF), 0, "Directive specific: a stream."),
    )


def send(device: str | None, nsid: int | None, make: Callable[[Any], Command], payload: Any = None) -> Any:
    """Sends an I/O command that is made of the namespace; invalid arguments are errors of use."""

    async def operation(controller: Any) -> Any:
        ns = namespace(controller, nsid)
        with builder_arguments():
            made = make(ns)
        return await ns.submit(made, payload)

    return execute(device, operation)


async def tagged(controller: Any, ns: Any, made: Command, reftag: int, storage: int) -> Command:
    """The command with a reference tag and a storage tag, whose places depend on the namespace's
    format (NVM 1.1, 3.3): dwords 14, 3 and 2, together up to 80 bits.
    """
    if not reftag and not storage:
        return made
    nvm = None
    try:
        nvm = IdentifyNamespaceNvm.decode(await read_identify(controller, Cns.CSI_NAMESPACE, ns.nsid))
    except (CommandError, ValueError):
        pass  # it has no storage tags
    form = Format.of(ns.identify, nvm)
    low = (form.pi.tag_bits if form.pi is not None else 32) - form.storage_tag_bits
    if reftag >> low:
        raise click.UsageError(f"--ref-tag {reftag:#x} has more than {low} bits")
    if storage >> form.storage_tag_bits:
        raise click.UsageError(f"--storage-tag {storage:#x} has more than {form.storage_tag_bits} bits")
    whole = storage << low | reftag
    return attrs.evolve(made, cdw14=whole & 0xFFFF_FFFF, cdw3=whole >> 32 & 0xFFFF_FFFF, cdw2=whole >> 64 & 0xFFFF)


def _without_data(
    device: str | None, nsid: int | None, make: Callable[[Any], Command], reftag: int, storage: int
) -> None:
    async def operation(controller: Any) -> None:
        ns = namespace(controller, nsid)
        with builder_arguments():
            made = make(ns)
        await ns.submit(await tagged(controller, ns, made, reftag, storage))

    execute(device, operation)


def _directed(made: Command, dtype: int, dspec: int) -> Command:
    return attrs.evolve(made, cdw12=made.cdw12 | dtype << 20, cdw13=made.cdw13 | dspec << 16)


@command(
    "write-zeroes",
    NSID,
    START,
    COUNT,
    *directive("T", "D"),
    (("-d", "--deac"), "deac", bool, False, "They may be deallocated."),
    LIMITED,
    FUA,
    PRINFO,
    REF_TAG,
    APP_MASK,
    APP_TAG,
    storage_tag("S"),
    CHECK,
    (("-Z", "--namespace-zeroes"), "everything", bool, False, "All blocks of the namespace."),
    FORCE,
)
def write_zeroes(
    device: str | None,
    nsid: int | None,
    start: int,
    count: int,
    dtype: int,
    dspec: int,
    deac: bool,
    limited: bool,
    fua: bool,
    storage: int,
    reftag: int,
    everything: bool,
    force: bool,
    **more: Any,
) -> None:
    """Make blocks of DEVICE read as zeroes."""
    ask(device, "write-zeroes of all blocks" if everything else f"write-zeroes of {count + 1} blocks", force)

    def make(ns: Any) -> Command:
        made = commands.write_zeroes(ns.nsid, start, count + 1, deac=deac, fua=fua, lr=limited, **more)
        made = attrs.evolve(made, cdw12=made.cdw12 | everything << 23)
        return _directed(made, dtype, dspec)

    _without_data(device, nsid, make, reftag, storage)
    say("NVME Write Zeroes Success")


@command("write-uncor", NSID, START, COUNT, *directive("T", "S"), FORCE)
def write_uncor(
    device: str | None, nsid: int | None, start: int, count: int, dtype: int, dspec: int, force: bool
) -> None:
    """Mark blocks of DEVICE as unreadable."""
    ask(device, f"write-uncor of {count + 1} blocks", force)
    send(device, nsid, lambda ns: _directed(commands.write_uncorrectable(ns.nsid, start, count + 1), dtype, dspec))
    say("NVME Write Uncorrectable Success")


@command(
    "verify",
    NSID,
    START,
    COUNT,
    LIMITED,
    FUA,
    PRINFO,
    REF_TAG,
    APP_TAG,
    APP_MASK,
    storage_tag("S"),
    CHECK,
)
def verify(
    device: str | None,
    nsid: int | None,
    start: int,
    count: int,
    limited: bool,
    fua: bool,
    reftag: int,
    storage: int,
    **more: Any,
) -> None:
    """Make DEVICE read and check blocks without transferring them."""
    _without_data(
        device,
        nsid,
        lambda ns: commands.verify(ns.nsid, start, count + 1, fua=fua, lr=limited, **more),
        reftag,
        storage,
    )
    say("NVME Verify Success")


TRANSFER: tuple[Option, ...] = (
    (("-z", "--data-size"), "data_size", int, None, "Bytes of data.  [default: those of the blocks]"),
    (("-y", "--metadata-size"), "metadata_size", int, 0, "Bytes of metadata in a separate buffer."),
    REF_TAG,
    (("-M", "--metadata"), "metadata", click.Path(dir_okay=False, path_type=Path), None, "File of the metadata."),
    PRINFO,
    APP_MASK,
    APP_TAG,
    storage_tag("g"),
    LIMITED,
    CHECK,
    *directive("T", "S"),
    (("-D", "--dsm"), "dsm", click.IntRange(0, 255), 0, "Dataset management hints."),
    (("-V", "--show-command"), "show_command", bool, False, "Show the command, too."),
    (("-w", "--dry-run"), "dry_run", bool, False, "Show the command only."),
    (("-t", "--latency"), "latency", bool, False, "Show how long it took."),
)


def transfer_command(
    kind: Callable[..., Command], ns: Any, start: int, count: int, fua: bool, options: dict[str, Any]
) -> Command:
    """A Read, Write or Compare (kind: its builder) for transfer(). count: zero-based."""
    with builder_arguments():
        return kind(
            ns.nsid,
            start,
            count + 1,
            fua,
            options["limited"],
            prinfo=options["prinfo"],
            stc=options["stc"],
            apptag=options["apptag"],
            apptag_mask=options["apptag_mask"],
        )


async def transfer(
    controller: Any, ns: Any, made: Command, data: bytes | None, options: dict[str, Any]
) -> tuple[bytes, bytes]:
    """One command with data and perhaps metadata; returns what came. options: those of TRANSFER.
    data: None if the command reads.
    """
    made = _directed(made, options["dtype"], options["dspec"])
    made = attrs.evolve(made, cdw13=made.cdw13 | options["dsm"])
    made = await tagged(controller, ns, made, options["reftag"], options["storage"])
    if options["show_command"] or options["dry_run"]:
        for name in ("opcode", "nsid", *(f"cdw{number}" for number in (2, 3, 10, 11, 12, 13, 14, 15))):
            click.echo(f"{name:<12} : {getattr(made, name):08x}", err=True)
    if options["dry_run"]:
        return b"", b""
    nbytes = options["data_size"] if data is None else len(data)
    buffer = bytearray(nbytes) if data is None else data
    length = options["metadata_size"]
    separate = b""
    began = time.perf_counter()
    if not length:
        completion = await ns.submit(made, buffer)
    else:
        if not hasattr(controller, "alloc"):
            raise click.UsageError("--metadata-size needs a controller of this process")
        with controller.alloc(length) as memory:
            source = options["metadata"].read_bytes() if options["metadata"] and data is not None else b""
            memory[:length] = source[:length].ljust(length, b"\0")
            completion = await ns.submit(attrs.evolve(made, mptr=memory.iova), buffer)
            separate = bytes(memory[:length])
    if options["latency"]:
        click.echo(f" latency: {made.name}: {(time.perf_counter() - began) * 1e6:.0f} us", err=True)
    came = completion.data if completion.data is not None else buffer
    return (bytes(came) if data is None else b""), separate


@command(
    "compare",
    NSID,
    START,
    COUNT,
    *TRANSFER,
    (("-d", "--data"), "data", _FILE, None, "What to compare with.  [default: stdin]"),
    FUA,
    (("--force",), "force", bool, False, "No effect: nothing is written."),
)
def compare(
    device: str | None,
    nsid: int | None,
    start: int,
    count: int,
    data: Path | None,
    fua: bool,
    force: bool,
    **options: Any,
) -> None:
    """Compare blocks of DEVICE with a file."""
    whole = data.read_bytes() if data is not None else sys.stdin.buffer.read()

    async def operation(controller: Any) -> None:
        ns = namespace(controller, nsid)
        nbytes = options["data_size"] or (count + 1) * ns.block_size
        if len(whole) < nbytes:
            raise click.UsageError(f"{len(whole)} bytes are less than {count + 1} blocks of {ns.block_size}")
        made = transfer_command(commands.compare, ns, start, count, fua, options)
        await transfer(controller, ns, made, whole[:nbytes], options)

    execute(device, operation)
    say("compare: Success")


@command(
    "dsm",
    NSID,
    (("-a", "--ctx-attrs"), "attributes", str, None, "Context attributes of each range."),
    (("-b", "--blocks"), "blocks", str, None, "Blocks of each range."),
    (("-s", "--slbs"), "starts", str, None, "First block of each range."),
    (("-d", "--ad"), "deallocate", bool, False, "Deallocate them."),
    (("-w", "--idw"), "write", bool, False, "They will be written as a whole."),
    (("-r", "--idr"), "read", bool, False, "They will be read as a whole."),
    (("-c", "--cdw11"), "cdw11", int, None, "Instead of --ad, --idw, --idr: command dword 11."),
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
    cdw11: int | None,
    force: bool,
) -> None:
    """Declare the use of blocks of DEVICE, or that they are unused."""
    counts, firsts = numbers(blocks, "blocks"), numbers(starts, "slbs")
    if not counts or len(counts) != len(firsts):
        raise click.UsageError("--blocks and --slbs are needed, with the same number of values")
    contexts = numbers(attributes, "ctx-attrs")
    if len(contexts) not in (0, 1, len(counts)):
        raise click.UsageError(f"--ctx-attrs has {len(contexts)} numbers for {len(counts)} ranges")
    contexts = contexts if len(contexts) == len(counts) else (contexts or [0]) * len(counts)
    flags = (
        DsmAttribute.DEALLOCATE * deallocate | DsmAttribute.INTEGRAL_WRITE * write | DsmAttribute.INTEGRAL_READ * read
    )
    chosen = int(flags) if cdw11 is None else cdw11
    if chosen & DsmAttribute.DEALLOCATE:
        ask(device, f"deallocation of {sum(counts)} blocks", force)
    with builder_arguments():
        payload = b"".join(
            commands.dsm_ranges([(first, count)], context)
            for first, count, context in zip(firsts, counts, contexts, strict=True)
        )
    send(device, nsid, lambda ns: commands.dataset_management(ns.nsid, len(counts), chosen), payload)
    say("NVMe DSM: success")


@command(
    "copy",
    NSID,
    (("-d", "--sdlba"), "to", int, None, "Where it goes."),
    (("-s", "--slbs"), "starts", str, None, "First block of each source."),
    (("-b", "--blocks"), "blocks", str, None, "Blocks of each source, zero-based."),
    (("-N", "--snsids"), "nsids", str, None, "Namespace of each source, in formats 2 and 3."),
    (("-O", "--sopts"), "options", str, None, "Options of each source, in formats 2 and 3."),
    LIMITED,
    FUA,
    (("-p", "--prinfow"), "prinfow", click.IntRange(0, 15), 0, "PRACT and checks of the write."),
    (("-P", "--prinfor"), "prinfor", click.IntRange(0, 15), 0, "PRACT and checks of the read."),
    (("-r", "--ref-tag"), "reftag", int, 0, "Reference tag of the first block written."),
    (("-R", "--expected-ref-tags"), "tags", str, None, "Expected reference tags, one for each source."),
    APP_TAG,
    (("-A", "--expected-app-tags"), "apptags", str, None, "Expected application tags, one for each source."),
    APP_MASK,
    (("-M", "--expected-app-tag-masks"), "masks", str, None, "Masks of the expected ones, one for each source."),
    *directive("T", "S"),
    (("-F", "--format"), "form", click.IntRange(0, 3), 0, "Descriptor format."),
    FORCE,
)
def copy(
    device: str | None,
    nsid: int | None,
    to: int | None,
    starts: str | None,
    blocks: str | None,
    limited: bool,
    fua: bool,
    prinfow: int,
    prinfor: int,
    force: bool,
    form: int,
    **more: Any,
) -> None:
    """Copy blocks within DEVICE."""
    counts, firsts = numbers(blocks, "blocks"), numbers(starts, "slbs")
    if to is None or not counts or len(counts) != len(firsts):
        raise click.UsageError("--sdlba, --slbs and --blocks are needed, with the same number of values")
    lists: dict[str, list[int]] = {}
    for name, flag in (
        ("nsids", "snsids"),
        ("options", "sopts"),
        ("tags", "expected-ref-tags"),
        ("apptags", "expected-app-tags"),
        ("masks", "expected-app-tag-masks"),
    ):
        lists[name] = numbers(more.pop(name), flag)
        if len(lists[name]) not in (0, len(counts)):
            raise click.UsageError(f"--{flag} has {len(lists[name])} numbers for {len(counts)} sources")
        lists[name] = lists[name] or [0] * len(counts)
    ask(device, f"copy over {sum(counts) + len(counts)} blocks", force)
    with builder_arguments():
        sources = [
            CopySource(
                lba=first,
                blocks=counts[index] + 1,
                nsid=lists["nsids"][index],
                options=lists["options"][index],
                tags=lists["tags"][index],
                apptag=lists["apptags"][index],
                apptag_mask=lists["masks"][index],
            )
            for index, first in enumerate(firsts)
        ]
        payload = commands.copy_descriptors(sources, form)
    send(
        device,
        nsid,
        lambda ns: commands.copy(
            ns.nsid,
            to,
            len(sources),
            fua,
            limited,
            form=form,
            prinfo_read=prinfor,
            prinfo_write=prinfow,
            **more,
        ),
        payload,
    )
    say("NVMe Copy: success")
