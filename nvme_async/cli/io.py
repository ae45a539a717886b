"""nvme-async read, write and flush: blocks of a namespace, as in nvme-cli."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import attrs
import click
import uvloop

import nvme_async
from nvme_async.cli.blocking import beside, read_up_to, write_all
from nvme_async.cli.fabrics import open_device
from nvme_async.cli.nvme.single import read_one, with_transfer_options, write_one
from nvme_async.cli.output import output_option
from nvme_async.emulator.parsing import parse_size
from nvme_async.errors import ConfigurationError
from nvme_async.manager import Manager

ALL_NAMESPACES = 0xFFFF_FFFF
CHUNK = 1 << 20
"""Bytes of one request; the driver splits it into commands."""
DEPTH = 8
"""Requests at once, so that neither the controller nor the file waits for the other. Memory is
bounded by both.
"""


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes: 4096, 128KiB, 1g."""
    try:
        return None if value is None else parse_size(value, param.opts[0])
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from None


def _nsid(value: str) -> int:
    nsid = int(value, 0)
    if not 1 <= nsid <= ALL_NAMESPACES:
        raise ValueError
    return nsid


def _number(value: str) -> int:
    number = int(value, 0)
    if number < 0:
        raise ValueError
    return number


def _checked(convert: Callable[[str], int], what: str) -> Callable[..., int | None]:
    def check(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
        if value is None:
            return None
        try:
            return convert(value)
        except ValueError:
            raise click.BadParameter(f"{value!r} is not {what}") from None

    return check


_device = click.argument("device")
_nsid_option = click.option(
    "-n",
    "--namespace-id",
    "--nsid",
    "nsid",
    callback=_checked(_nsid, "a namespace id (1 to 0xffffffff)"),
    help="Namespace.  [default: the first]",
)
_start = click.option(
    "-s",
    "--start-block",
    "start",
    callback=_checked(_number, "a block number"),
    help="First logical block (LBA).  [default: 0]",
)
_count = click.option(
    "-c",
    "--block-count",
    "count",
    callback=_checked(_number, "a number of blocks"),
    help="Number of blocks, zero-based as in nvme-cli: 0 means one.",
)
_offset = click.option("--offset", callback=_size, metavar="SIZE", help="Instead of --start-block: the first byte.")
_fua = click.option("-f", "--force-unit-access", "fua", is_flag=True, help="Set FUA: access the media, not a cache.")
_force = click.option("--force", is_flag=True, help="No effect: no drive is asked whether it is in use.")
_output = output_option()


def _place(length: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that say which blocks; the command gets them as an _Extent. length: help for
    --length.
    """
    options = [
        _device,
        _nsid_option,
        _start,
        _count,
        _offset,
        click.option("--length", callback=_size, metavar="SIZE", help=length),
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_extent(
            device: str,
            nsid: int | None,
            start: int | None,
            count: int | None,
            offset: int | None,
            length: int | None,
            **others: Any,
        ) -> None:
            command(_Extent(device, nsid, start, count, offset, length), **others)

        decorated: Callable[..., None] = with_extent
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


@attrs.frozen
class _Extent:
    """Blocks of a device, as the options name them."""

    device: str
    nsid: int | None
    start: int | None
    count: int | None
    offset: int | None
    length: int | None

    def first_byte(self, namespace: nvme_async.Namespace) -> int:
        if self.start is not None and self.offset is not None:
            raise click.UsageError("--start-block and --offset exclude each other")
        return self.offset if self.offset is not None else (self.start or 0) * namespace.block_size

    def in_blocks(self) -> tuple[int, int]:
        """(First block, blocks zero-based), for one command."""
        if self.offset is not None or self.length is not None:
            raise click.UsageError("--offset and --length can't be used with the options of one command")
        return self.start or 0, self.count or 0

    def nbytes(self, namespace: nvme_async.Namespace) -> int | None:
        if self.count is not None and self.length is not None:
            raise click.UsageError("--block-count and --length exclude each other")
        return self.length if self.count is None else (self.count + 1) * namespace.block_size


@asynccontextmanager
async def _namespaces(device: str, nsid: int | None) -> AsyncIterator[list[nvme_async.Namespace]]:
    """The requested namespace; all of them for FFFFFFFFh."""
    async with open_device(device) as controller:
        yield [controller.namespaces[chosen] for chosen in _chosen(device, controller, nsid)]


def _chosen(device: str, controller: nvme_async.Controller, nsid: int | None) -> list[int]:
    active = controller.namespaces
    if nsid == ALL_NAMESPACES:
        return list(active)
    if nsid is None and active:
        nsid = min(active)
    if nsid is None or nsid not in active:
        wanted = "" if nsid is None else f" {nsid}"
        raise click.ClickException(
            f"no active namespace{wanted} on {device}; active: {', '.join(map(str, active)) or 'none'}"
        )
    return [nsid]


def _check(namespace: nvme_async.Namespace, offset: int, nbytes: int) -> None:
    """Checks before anything is transferred, so that an error changes nothing."""
    size = namespace.block_size
    for name, value in (("offset", offset), ("length", nbytes)):
        if value % size:
            raise click.UsageError(f"the {name} of {value} bytes is not a multiple of the block size of {size}")
    if nbytes == 0:
        raise click.UsageError("no data to transfer: the length is 0 bytes")
    if offset + nbytes > namespace.nbytes:
        raise click.UsageError(
            f"blocks {offset // size} to {(offset + nbytes) // size - 1} were requested; namespace "
            f"{namespace.nsid} has {namespace.blocks}"
        )


def _report(what: str, namespace: nvme_async.Namespace, offset: int, nbytes: int, seconds: float, output: str) -> None:
    if output == "json":
        size = namespace.block_size
        answer = {
            "nsid": namespace.nsid,
            "start_block": offset // size,
            "blocks": nbytes // size,
            "nbytes": nbytes,
            "seconds": round(seconds, 6),
        }
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(f"{what}: Success, {nbytes} bytes", err=True)


async def _copy_out(
    namespace: nvme_async.Namespace, offset: int, nbytes: int, fua: bool, put: Callable[[bytes], Any]
) -> None:
    size = namespace.block_size
    under_way: deque[asyncio.Task[bytes]] = deque()
    at, end = offset, offset + nbytes
    async with asyncio.TaskGroup() as group:
        while at < end or under_way:
            while at < end and len(under_way) < DEPTH:
                part = min(CHUNK, end - at)
                under_way.append(group.create_task(_read_part(namespace, at // size, part // size, fua)))
                at += part
            data = await under_way.popleft()
            await beside(partial(put, data))


async def _read_part(namespace: nvme_async.Namespace, lba: int, blocks: int, fua: bool) -> bytes:
    return await namespace.read(lba, blocks, fua=fua)


async def _read(extent: _Extent, data: str, fua: bool, output: str) -> None:
    async with _namespaces(extent.device, extent.nsid) as namespaces:
        namespace = namespaces[0]
        first, given = extent.first_byte(namespace), extent.nbytes(namespace)
        nbytes = namespace.block_size if given is None else given
        _check(namespace, first, nbytes)
        began = time.monotonic()
        with _destination(data) as fd:
            await _copy_out(namespace, first, nbytes, fua, partial(write_all, fd))
        _report("read", namespace, first, nbytes, time.monotonic() - began, output)


@contextmanager
def _opened(path: str, standard: int, flags: int) -> Iterator[int]:
    """A descriptor, without a buffer: closing one waits for the thread that is in it.

    After a failure it stays open, as a thread may still be in it, and must not meet another file
    under its number; the program ends soon.
    """
    fd = os.dup(standard) if path == "-" else os.open(path, flags | os.O_CLOEXEC, 0o666)
    yield fd
    os.close(fd)


def _destination(path: str) -> AbstractContextManager[int]:
    return _opened(path, sys.stdout.fileno() if path == "-" else -1, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def _origin(path: str) -> AbstractContextManager[int]:
    return _opened(path, sys.stdin.fileno() if path == "-" else -1, os.O_RDONLY)


class _Source:
    """The data to write: whole blocks from a file or a pipe, in chunks."""

    def __init__(self, fd: int, nbytes: int | None, block_size: int, pad: bool) -> None:
        self._fd = fd
        self._left = nbytes
        self._block_size = block_size
        self._pad = pad
        self.known = self._size_of(fd) if nbytes is None else nbytes

    def _size_of(self, fd: int) -> int | None:
        """Bytes up to the end, including padding; None if only reading shows it."""
        try:
            at = os.lseek(fd, 0, os.SEEK_CUR)
            nbytes = os.lseek(fd, 0, os.SEEK_END) - at
            os.lseek(fd, at, os.SEEK_SET)
        except OSError:
            return None
        return -(-nbytes // self._block_size) * self._block_size if self._pad else nbytes

    def next(self) -> bytes:
        """Empty at the end. Blocks: call it from a thread."""
        wanted = CHUNK if self._left is None else min(CHUNK, self._left)
        data = read_up_to(self._fd, wanted)
        missing = (-len(data)) % self._block_size
        if self._left is not None:
            if len(data) < wanted:
                if not self._pad:
                    raise click.UsageError(
                        f"the input is {self._left - len(data)} bytes too short; --pad fills the rest with zeroes"
                    )
                missing = wanted - len(data)
            self._left -= wanted
        elif missing and not self._pad:
            raise click.UsageError(
                f"the data's last {len(data) % self._block_size} bytes fill no "
                f"block of {self._block_size}; "
                "--pad fills it up with zeroes"
            )
        return data + bytes(missing) if data or self._left is not None else data


async def _write(extent: _Extent, data: str, fua: bool, pad: bool, output: str) -> None:
    with _origin(data) as fd:
        async with _namespaces(extent.device, extent.nsid) as namespaces:
            namespace = namespaces[0]
            size = namespace.block_size
            first = extent.first_byte(namespace)
            source = _Source(fd, extent.nbytes(namespace), size, pad)
            _check(namespace, first, size if source.known is None else source.known)
            began = time.monotonic()
            at = first
            slots = asyncio.Semaphore(DEPTH)

            async def put(lba: int, block: bytes) -> None:
                try:
                    await namespace.write(lba, block, fua=fua)
                finally:
                    slots.release()

            async with asyncio.TaskGroup() as group:
                while part := await beside(source.next):
                    if at + len(part) > namespace.nbytes:
                        raise click.UsageError(
                            f"the data go beyond the end of namespace {namespace.nsid} at {namespace.nbytes} bytes"
                        )
                    await slots.acquire()
                    group.create_task(put(at // size, part))
                    at += len(part)
            if at == first:
                raise click.UsageError("no data to transfer: the length is 0 bytes")
            _report("write", namespace, first, at - first, time.monotonic() - began, output)


async def _flush(device: str, nsid: int | None) -> None:
    async with _namespaces(device, nsid) as namespaces:
        await asyncio.gather(*(namespace.flush() for namespace in namespaces))


async def _flush_all(devices: Sequence[str], nsid: int | None) -> None:
    """Several devices at the same time. Raises the first failure when all are done."""
    async with Manager(repairs=0, hotplug="off") as manager:

        async def flush(address: str) -> None:
            device = await manager.load(address)
            assert device.controller is not None
            namespaces = [await device.namespace(chosen) for chosen in _chosen(address, device.controller, nsid)]
            await asyncio.gather(*(namespace.flush() for namespace in namespaces))

        tasks = [asyncio.ensure_future(flush(address)) for address in dict.fromkeys(devices)]
        await asyncio.wait(tasks)
        for task in tasks:
            task.result()


def _run(work: Any) -> None:
    """uvloop.run(), with the one failure of a group of requests instead of the group."""
    try:
        uvloop.run(work)
    except ExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


@click.command()
@_place("Instead of --block-count: length in bytes.")
@click.option("-d", "--data", "data", default="-", show_default=True, help="Output file; - is stdout.")
@_fua
@_force
@_output
@with_transfer_options
def read(extent: _Extent, data: str, fua: bool, force: bool, output: str, one: dict[str, Any] | None) -> None:
    """Read blocks of DEVICE.

    With one of the options of a transfer (tags, checks, hints, metadata, --dry-run, --latency) it
    is one command, as in nvme-cli.
    """
    if output == "json" and data == "-":
        raise click.UsageError("-o json and the data can't both go to stdout: give --data FILE")
    if data == "-" and sys.stdout.isatty():
        raise click.UsageError("the output is binary and stdout is a terminal: give --data FILE, or use a pipe")
    if one is not None:
        start, count = extent.in_blocks()
        nbytes = read_one(extent.device, extent.nsid, start, count, data, fua, one)
        click.echo(f"read: Success, {nbytes} bytes", err=True)
        return
    _run(_read(extent, data, fua, output))


@click.command()
@_place("Instead of --block-count: length in bytes.  [default: the whole input]")
@click.option("-d", "--data", "data", default="-", show_default=True, help="Input file; - is stdin.")
@click.option("--pad", is_flag=True, help="Fill the missing part of the last block, or of the length, with zeroes.")
@_fua
@_force
@_output
@with_transfer_options
def write(
    extent: _Extent,
    data: str,
    fua: bool,
    force: bool,
    pad: bool,
    output: str,
    one: dict[str, Any] | None,
) -> None:
    """Write blocks of DEVICE.

    With one of the options of a transfer (tags, checks, hints, metadata, --dry-run, --latency) it
    is one command, as in nvme-cli.
    """
    if one is not None:
        if pad:
            raise click.UsageError("--pad and the options of one command exclude each other")
        start, count = extent.in_blocks()
        nbytes = write_one(extent.device, extent.nsid, start, count, data, fua, one)
        click.echo(f"write: Success, {nbytes} bytes", err=True)
        return
    _run(_write(extent, data, fua, pad, output))


@click.command()
@click.argument("devices", nargs=-1, required=True, metavar="DEVICE...")
@_nsid_option
def flush(devices: tuple[str, ...], nsid: int | None) -> None:
    """Commit the data written to each DEVICE to its media; -n 0xffffffff: of all namespaces."""
    _run(_flush(devices[0], nsid) if len(devices) == 1 else _flush_all(devices, nsid))
    click.echo("flush: Success", err=True)
