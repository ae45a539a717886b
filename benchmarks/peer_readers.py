"""The contenders of benchmarks/peers.py: each awaits 4 KiB at a block number of one file."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import mmap
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nvme_async

BLOCK = 4096
SIZE = 64 << 20
Read = Callable[[int], Awaitable[Any]]
Opened = contextlib.AbstractAsyncContextManager[Read]


class NotOffered(Exception):
    """A library has no way to do that."""


def opened(path: str, direct: bool) -> int:
    return os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))


def aligned() -> mmap.mmap:
    """A buffer as O_DIRECT wants it."""
    return mmap.mmap(-1, BLOCK)


@contextlib.asynccontextmanager
async def emulated(path: str, direct: bool) -> AsyncIterator[Read]:
    """No kernel and no file: the emulated controller's RAM, with the file's content."""
    async with nvme_async.open(f"emulated:size={SIZE},block={BLOCK}") as controller:
        namespace = controller.namespaces[1]
        with open(path, "rb") as file:
            step = 1 << 20
            for lba in range(0, SIZE // BLOCK, step // BLOCK):
                await namespace.write(lba, file.read(step))
        yield namespace.read


@contextlib.asynccontextmanager
async def ours(path: str, direct: bool) -> AsyncIterator[Read]:
    """The same file as the peers', through the kernel."""
    options: dict[str, Any] = {"direct": "always" if direct else "never"}
    async with nvme_async.open(f"file:{path}", block_size=BLOCK, read_only=True, **options) as controller:
        yield controller.namespaces[1].read


def caio_with(module: str) -> Callable[[str, bool], Opened]:
    @contextlib.asynccontextmanager
    async def reader(path: str, direct: bool) -> AsyncIterator[Read]:
        context = importlib.import_module(f"caio.{module}").AsyncioContext(max_requests=256)
        fd = opened(path, direct)
        try:
            yield lambda block: context.read(BLOCK, fd, block * BLOCK)
        finally:
            context.close()
            os.close(fd)

    return reader


@contextlib.asynccontextmanager
async def aiofile_(path: str, direct: bool) -> AsyncIterator[Read]:
    import aiofile

    if direct:
        raise NotOffered("aiofile opens files without O_DIRECT")
    file = aiofile.AIOFile(path, "rb")
    await file.open()
    try:
        yield lambda block: file.read_bytes(BLOCK, block * BLOCK)
    finally:
        await file.close()


@contextlib.asynccontextmanager
async def turbofile_(path: str, direct: bool) -> AsyncIterator[Read]:
    import turbofile

    if direct:
        raise NotOffered("turbofile opens files without O_DIRECT")
    async with turbofile.open(path, "rb") as file:
        yield lambda block: file.read_at(block * BLOCK, BLOCK)


@contextlib.asynccontextmanager
async def urio_(path: str, direct: bool) -> AsyncIterator[Read]:
    """Its files have no positional read: their driver has."""
    from urio.driver import close_driver, get_driver

    fd = opened(path, direct)
    driver = get_driver()
    try:
        yield lambda block: driver.read(fd, block * BLOCK, BLOCK)
    finally:
        close_driver(asyncio.get_running_loop())
        os.close(fd)


@contextlib.asynccontextmanager
async def pyaio_(path: str, direct: bool) -> AsyncIterator[Read]:
    from pyaio.uring import UringIO

    fd = opened(path, direct)
    async with UringIO() as ring:
        yield lambda block: ring.read(fd, block * BLOCK, BLOCK)
    os.close(fd)


@contextlib.asynccontextmanager
async def liburing_(path: str, direct: bool) -> AsyncIterator[Read]:
    """The binding has no asyncio interface: an eventfd, one Future per read, one submission per
    read.
    """
    import liburing

    if direct:
        raise NotOffered("liburing reads into bytearrays, which are not aligned as O_DIRECT needs it")
    loop = asyncio.get_running_loop()
    ring, cqe = liburing.Ring(), liburing.Cqe()
    liburing.io_uring_queue_init(256, ring)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    liburing.io_uring_register_eventfd(ring, event)
    fd = opened(path, direct)
    waiting: dict[int, tuple[asyncio.Future[bytes], bytearray]] = {}
    number = 0

    def readable() -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(event)
        while True:
            try:
                liburing.io_uring_peek_cqe(ring, cqe)
            except BlockingIOError:
                return
            future, buffer = waiting.pop(cqe[0].user_data)
            liburing.io_uring_cqe_seen(ring, cqe[0])
            future.set_result(bytes(buffer))

    def read(block: int) -> asyncio.Future[bytes]:
        nonlocal number
        number += 1
        sqe = liburing.io_uring_get_sqe(ring)
        buffer = bytearray(BLOCK)
        liburing.io_uring_prep_read(sqe, fd, buffer, block * BLOCK)
        sqe.user_data = number
        future = loop.create_future()
        waiting[number] = future, buffer
        liburing.io_uring_submit(ring)
        return future

    loop.add_reader(event, readable)
    try:
        yield read
    finally:
        loop.remove_reader(event)
        liburing.io_uring_queue_exit(ring)
        os.close(event)
        os.close(fd)


@contextlib.asynccontextmanager
async def threads(path: str, direct: bool) -> AsyncIterator[Read]:
    fd = opened(path, direct)

    def read(block: int) -> bytes:
        if not direct:
            return os.pread(fd, BLOCK, block * BLOCK)
        with aligned() as buffer:
            os.preadv(fd, [buffer], block * BLOCK)
            return buffer[:]

    try:
        yield lambda block: asyncio.to_thread(read, block)
    finally:
        os.close(fd)


OURS = "nvme_async file:"
EMULATED = "nvme_async emulated:"
CONTENDERS: dict[str, Callable[[str, bool], Opened]] = {
    EMULATED: emulated,
    OURS: ours,
    "turbofile": turbofile_,
    "urio": urio_,
    "pyaio": pyaio_,
    "caio linux-aio": caio_with("linux_aio_asyncio"),
    "caio io_uring": caio_with("linux_uring_asyncio"),
    "caio threads": caio_with("thread_aio_asyncio"),
    "aiofile": aiofile_,
    "liburing": liburing_,
    "to_thread(os.pread)": threads,
}
