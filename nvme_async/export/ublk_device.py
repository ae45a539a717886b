"""A namespace as /dev/ublkbN, served by this process and recovered by the next one.

Each queue of the device is C (ext/ublk): a source of commands on the queue pair of a thread's event
loop. Requests become commands and answers there without the interpreter. Here the device is made,
started, watched and removed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from nvme_async.driver.namespace import Namespace
from nvme_async.errors import ConfigurationError, DeviceError, HandedOver
from nvme_async.export.ublk import RECOVERABLE, DeviceInfo, Feature, State, Ublk
from nvme_async.export.ublk_geometry import limits_of, mark_of, parameters_of
from nvme_async.export.ublk_size import DiskSize
from nvme_async.keepalive.controller import Controller
from nvme_async.manager.workers import Worker
from nvme_async.native import _hotpath, _ublk
from nvme_async.native._placement import HostMemory
from nvme_async.runtime import forks
from nvme_async.runtime.loops import until_done
from nvme_async.runtime.tasks import in_thread

log = logging.getLogger("nvme_async")

CELL_BYTES = 128 << 10
"""Data of one request, at most."""
TAG = int.from_bytes(b"ublk", "big") << 32
"""Of a block device's memory, with the namespace's number."""
SPARE = 4
"""Tags that no request gets. Linux 6.12 notices a server's death at once only if one of its tags is
without a request.
"""
FETCH_LIMIT = 20.0
NODE_LIMIT = 10.0
JOIN_LIMIT = 10.0
"""Seconds."""

_abandoned: list[Any] = []
"""Queues and memory of threads that did not end: the kernel may still write there."""


class BlockDevice:
    """Made by block_device(). On one event loop, that of the caller; `async with` closes it."""

    def __init__(self, namespace: Namespace, ublk: Ublk, *, queues: int, depth: int, read_only: bool) -> None:
        if not 1 <= queues <= 64:
            raise ConfigurationError(f"queues is {queues}, outside of 1 to 64")
        if not 1 <= depth <= 1024:
            raise ConfigurationError(f"depth is {depth}, outside of 1 to 1024")
        if namespace.has_metadata:
            raise ConfigurationError(
                f"namespace {namespace.nsid} has {namespace.identify.metadata_size} bytes of metadata in each block, "
                "and a block device can't carry them"
            )
        if not 512 <= namespace.block_size <= 4096:
            raise ConfigurationError(
                f"namespace {namespace.nsid} has blocks of {namespace.block_size} bytes; a block device has 512 to 4096"
            )
        self._cell = min(CELL_BYTES, namespace.max_blocks * namespace.block_size) // 4096 * 4096
        if not self._cell:
            raise ConfigurationError("one command moves less than the 4096 bytes that a block device needs")
        self.namespace = namespace
        self.read_only = read_only or namespace.identify.write_protected
        self.info: DeviceInfo | None = None
        self.failure: str | None = None
        """Why it ended by itself; None: it was not so."""
        self._ublk = ublk
        self._n_queues, self._depth = queues, depth
        self._workers: list[Worker] = []
        self._fd = -1
        self._queues: list[_ublk.Queue] = []
        self._streams: list[tuple[asyncio.AbstractEventLoop, _hotpath.Stream, _ublk.Queue]] = []
        self._memory: list[Any] = []
        self._serving: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._leaving = False
        self._closed = asyncio.Event()

    @property
    def device(self) -> int:
        """N of /dev/ublkbN."""
        assert self.info is not None
        return self.info.device

    @property
    def path(self) -> str:
        """/dev/ublkbN"""
        return f"/dev/ublkb{self.device}"

    async def __aenter__(self) -> BlockDevice:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- beginning ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Makes the device and its disk."""
        mark = mark_of(self.namespace)
        others = [info for info in await in_thread(self._ublk.devices) if info.mark == mark and info.pid != os.getpid()]
        if not any(info.served for info in others):
            self._free_predecessors()
        await self._start_workers()
        self.info = await in_thread(
            partial(
                self._ublk.add,
                queues=self._n_queues,
                depth=self._depth + SPARE,
                max_io_bytes=self._cell,
                mark=mark,
            )
        )
        try:
            parameters = parameters_of(self.namespace, max_transfer=self._cell, read_only=self.read_only)
            await in_thread(self._ublk.set_parameters, self.device, parameters)
            await self._fetch()
            await in_thread(self._ublk.start, self.device)
        except BaseException:
            await self._release()
            await self._remove()
            raise
        await in_thread(self._spare_tags)
        self._watch()

    async def recover(self, info: DeviceInfo) -> None:
        """Serves a device whose server has ended. The commands of that server must be over; where
        end_predecessor() was left out, the queue pairs are held until then, and fetch nothing.
        """
        self.info = info
        if info.max_io_bytes > self._cell or not info.max_io_bytes:
            raise ConfigurationError(f"{info.path} has requests of {info.max_io_bytes} bytes, over {self._cell}")
        self._cell, self._n_queues = info.max_io_bytes, info.queues
        self._depth = max(1, info.depth - SPARE)
        await self._start_workers()
        try:
            await in_thread(self._ublk.begin_recovery, info.device)
            self._free_predecessors()
            await self._fetch()
            await in_thread(self._ublk.end_recovery, info.device)
        except BaseException:
            await self._release()
            raise
        await in_thread(self._spare_tags)  # the dead server may not have got so far
        self._watch()

    def _free_predecessors(self) -> None:
        """The memory of a server that had the controller before: its threads have ended, so the
        kernel doesn't write there any more.
        """
        controller = self.namespace.controller
        assert isinstance(controller, Controller)
        for slot in controller.unclaimed():
            if slot.tag == TAG | self.namespace.nsid:
                controller.claim(slot).free()

    async def _start_workers(self) -> None:
        queues = self.namespace.controller.transport.queues
        try:
            for number in range(self._n_queues):
                worker = Worker(f"ublk-{number}", "uvloop", None)
                worker.start()
                self._workers.append(worker)
                if await worker.call(queues.for_this_loop) is None:
                    await self._end(self._workers.pop())
                    break
            if not self._workers:
                raise ConfigurationError(f"{self.namespace.controller.uri}: no queue pair is left for an export")
        except BaseException:
            await self._release()
            raise
        if len(self._workers) < self._n_queues:
            log.info("%s: %d queue pairs for %d queues", self.namespace, len(self._workers), self._n_queues)
            if self.info is None:
                self._n_queues = len(self._workers)

    async def _fetch(self) -> None:
        """The threads begin, and offer all tags to the kernel."""
        assert self.info is not None
        self._fd = await in_thread(_open_node, f"/dev/ublkc{self.device}")
        forks.watch(self)
        discard, zeroes = limits_of(self.namespace, read_only=self.read_only)
        for number in range(self.info.queues):
            memory, offset = await self._alloc(self.info.depth * self._cell)
            self._memory.append(memory)
            try:
                queue = _ublk.Queue(
                    self._fd,
                    memory,
                    number=number,
                    iova=memory.iova,
                    offset=offset,
                    depth=self.info.depth,
                    cell_nbytes=self._cell,
                    nbytes=self.namespace.nbytes,
                    nsid=self.namespace.nsid,
                    block_size=self.namespace.block_size,
                    zero_blocks=zeroes,
                    discard_blocks=discard,
                    read_only=self.read_only,
                    legacy=self._ublk.legacy,
                )
            except OSError as error:
                limit = " (the limit of locked memory, `ulimit -l`)" if error.errno == errno.ENOMEM else ""
                raise DeviceError(f"{self.path}: no ring for queue {number}: {error.strerror}{limit}") from error
            self._queues.append(queue)
            worker = self._workers[number % len(self._workers)]
            serve = until_done(worker.loop, partial(self._serve, queue))
            self._serving.append(asyncio.create_task(serve, name=f"{self.path} queue {number}"))
        end = time.monotonic() + FETCH_LIMIT
        while not all(queue.fetching for queue in self._queues):
            for task in self._serving:
                if task.done():
                    await task
            if time.monotonic() > end:
                raise DeviceError(f"{self.path}: its queues did not start within {FETCH_LIMIT:.0f} s")
            await asyncio.sleep(0.001)
        for queue in self._queues:
            if queue.why is not None:
                raise DeviceError(f"{self.path}: {queue.why}")

    async def _alloc(self, nbytes: int) -> tuple[Any, int | None]:
        """Memory, and where it lies in its pool; None: the transport reaches all memory."""
        try:
            memory = await in_thread(
                partial(self.namespace.controller.transport.alloc, nbytes, tag=TAG | self.namespace.nsid)
            )
        except ConfigurationError:
            return HostMemory(nbytes), None
        return memory, memory.offset

    async def _serve(self, queue: _ublk.Queue) -> None:
        """On a worker's loop, until the queue ends."""
        loop = asyncio.get_running_loop()
        pair = await self.namespace.controller.transport.queues.for_this_loop()
        hot = getattr(pair, "hot", None)
        if not isinstance(hot, _hotpath.QueuePair):
            raise ConfigurationError(
                f"{self.namespace.controller.uri}: this way to a drive has no queue pairs to export"
            )

        def sleep(stream: _hotpath.Stream, read: bool, write: bool) -> None:
            loop.add_reader(queue.fd, stream.wake)

        def wake(stream: _hotpath.Stream) -> None:
            loop.remove_reader(queue.fd)

        stream = _hotpath.Stream(hot, queue, geometry=self.namespace.geometry, on_sleep=sleep, on_wake=wake)
        self._streams.append((loop, stream, queue))
        await stream
        if queue.why is not None:
            raise DeviceError(queue.why)

    def _spare_tags(self) -> None:
        try:
            Path(f"/sys/block/ublkb{self.device}/queue/nr_requests").write_text(str(self._depth))
        except OSError as error:
            log.warning("%s: nr_requests stays as it is (%s): a recovery may take 30 s", self.path, error)

    # -- end ---------------------------------------------------------------------------------------

    def _watch(self) -> None:
        assert self.info is not None
        size = DiskSize(self.namespace, self._ublk, self.info, self._queues)
        self._following = asyncio.create_task(size.follow(), name=f"{self.path} size")
        self._watching = asyncio.create_task(self._until_over(), name=f"{self.path} end")

    async def _until_over(self) -> None:
        """Until all queues have ended, for whatever reason, and what follows."""
        done, _ = await asyncio.wait(self._serving, return_when=asyncio.FIRST_EXCEPTION)
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        failures = [error for task in done if not task.cancelled() and (error := task.exception()) is not None]
        await self._release()
        if any(isinstance(error, HandedOver) for error in failures):
            self._leaving = True
        elif failures:
            self.failure = str(failures[0])
            log.error("%s: no longer served: %s", self.path, self.failure)
        if not self._leaving:
            await self._remove()
        self._closed.set()

    async def _release(self) -> None:
        """Ends the threads, and closes what the kernel had from them."""
        ended = True
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.gather(*self._serving, return_exceptions=True)
        while self._workers:
            ended &= await self._end(self._workers.pop())
        if not ended:
            _abandoned.extend([*self._queues, *self._memory])
        else:
            for queue in self._queues:
                queue.close()
            for memory in self._memory:
                if hasattr(memory, "free"):
                    memory.free()  # its pages stay until the last command of the queue is over
        self._queues, self._memory, self._streams, self._serving = [], [], [], []
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def _end(self, worker: Worker) -> bool:
        """Has the thread ended, for the kernel too?"""
        thread = worker.inspect()["thread"]
        worker.stop()
        ended = await asyncio.to_thread(worker.join, JOIN_LIMIT)
        end = time.monotonic() + JOIN_LIMIT
        while ended and os.path.exists(f"/proc/self/task/{thread}"):
            if time.monotonic() > end:
                ended = False
            await asyncio.sleep(0.001)
        if not ended:
            log.warning("%s: thread %s doesn't end", self.namespace, worker.name)
        return ended

    async def _remove(self) -> None:
        """The device ends. Another process may have asked for it first."""
        with suppress(DeviceError):
            await in_thread(self._ublk.stop, self.device)
        with suppress(DeviceError):
            await in_thread(self._ublk.delete, self.device)

    async def close(self) -> None:
        """Removes the disk and the device. What it has in flight is finished first; a file system
        that is still mounted on it fails.
        """
        if self._watching is None:
            return
        if not self._closed.is_set() and not self._leaving:
            await in_thread(self._ublk.stop, self.device)
        await self._watching

    async def leave(self) -> int:
        """Stops serving, and leaves the disk as it is: its requests wait for the next process,
        which calls block_device(recover=True). Before an exec of this process; with a hand-over of
        the controller it happens by itself. Returns N of /dev/ublkbN.

        Requests that were begun are answered first; later ones come to the next process.
        """
        self._leaving = True

        def end(stream: _hotpath.Stream, queue: _ublk.Queue) -> None:
            queue.leave()
            stream.wake()

        for loop, stream, queue in list(self._streams):
            loop.call_soon_threadsafe(end, stream, queue)
        if self._watching is not None:
            await self._watching
        return self.device

    async def wait_closed(self) -> None:
        """Until it is no longer served: by close() or leave(), by another process, with its
        namespace, or after a hand-over.
        """
        await self._closed.wait()

    def forget_in_child(self) -> None:
        for queue in self._queues:
            queue.forget()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def inspect(self) -> dict[str, Any]:
        """The device and the counters of its queues, as plain data."""
        return {
            "path": self.path,
            "nsid": self.namespace.nsid,
            "nbytes": self.namespace.nbytes,
            "block_size": self.namespace.block_size,
            "read_only": self.read_only,
            "depth": self._depth,
            "threads": len(self._workers),
            "queues": [queue.inspect() for queue in self._queues],
        }


def _open_node(path: str) -> int:
    """A device that was just made may not have its node yet; one whose server has just died may
    still be open.
    """
    end = time.monotonic() + NODE_LIMIT
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENXIO) or time.monotonic() > end:
                raise DeviceError(f"{path}: {error.strerror}") from error
        time.sleep(0.01)


def _waiting_for(devices: list[DeviceInfo], mark: int, number: int | None) -> DeviceInfo | None:
    """The device to recover, or None."""
    for info in devices:
        if number is not None and info.device != number:
            continue
        if info.mark != mark:
            if number is not None:
                raise ConfigurationError(f"{info.path} is not an export of this namespace in its present format")
            continue
        if info.state is State.DEAD:
            continue
        if RECOVERABLE & ~Feature(info.flags & sum(Feature)):
            raise ConfigurationError(f"{info.path} was made without recovery")
        return info
    if number is not None:
        raise ConfigurationError(f"there is no /dev/ublkb{number} to recover")
    return None


async def block_device(
    namespace: Namespace,
    *,
    queues: int = 1,
    depth: int = 64,
    read_only: bool = False,
    recover: bool | int = False,
    ublk: Ublk | None = None,
) -> BlockDevice:
    """`namespace` as a disk of this machine, /dev/ublkbN, until it is closed. It outlives this
    process: after its death requests wait, and the next process recovers them.

    queues: each with a thread and one of the controller's queue pairs; there are never more than
        the machine has processors, and the controller queue pairs.
    depth: requests of one queue in flight; each has memory for one transfer of at most 128 KiB.
    read_only: of the disk; that of a write-protected namespace always is.
    recover: serve the disk of this namespace whose server has ended; a new one where there is none.
        A number: that one, and no other. Call end_predecessor() first: the kernel sends again what
        the dead process had not answered.
    ublk: the control device, opened otherwise.

    On the controller's home loop. Don't mount the disk in this process, or swap on it: a thread
    that waits for its own process waits for ever. Raises ConfigurationError without ublk (Linux 6.0
    and later, module ublk_drv, root), for namespaces with metadata, transports without queue pairs
    and values out of range, and DeviceError where the kernel refuses.
    """
    if ublk is None:
        ublk = await in_thread(Ublk.open)
    made = BlockDevice(namespace, ublk, queues=queues, depth=depth, read_only=read_only)
    found = None
    if recover is not False:
        number = None if recover is True else recover
        found = _waiting_for(await in_thread(ublk.devices), mark_of(namespace), number)
    await (made.start() if found is None else made.recover(found))
    return made
