"""An NBD server on a Unix socket whose disk is a namespace.

The handshake is Python's. After it, each connection is C alone (ext/nbd): requests become NVMe
commands of the event loop's queue pair, in memory that the controller reaches, without the
interpreter. Connections are spread over `threads` event loops, each with a queue pair of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from nvme_async.driver.namespace import Namespace
from nvme_async.errors import ConfigurationError, NvmeError
from nvme_async.export.handshake import Agreed, Export, Flag, shake_hands
from nvme_async.native import _hotpath, _nbd
from nvme_async.native._placement import HostMemory
from nvme_async.spec.identify import Oncs

log = logging.getLogger("nvme_async")

T = TypeVar("T")

CELL_BYTES = 128 << 10
"""Data of one NVMe command, at most."""
MAX_REQUEST = 32 << 20
"""What a client may ask for at once, at most: NBD's usual limit."""
HANDSHAKE_LIMIT = 10.0


class _Worker:
    """An event loop that serves connections: the caller's own, or a thread's."""

    def __init__(self, name: str = "") -> None:
        self._thread: threading.Thread | None = None
        if not name:
            self.loop = asyncio.get_running_loop()
            return
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    async def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Awaits make() on the worker's loop; cancelled with the caller."""
        if self._thread is None:
            return await make()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(make(), self.loop))

    async def close(self) -> None:
        """Ends the thread. Its loop's queue pair is the controller's to take back."""
        if self._thread is None:
            return
        await self.run(_end_tasks)
        self.loop.call_soon_threadsafe(self.loop.stop)
        await asyncio.to_thread(self._thread.join)
        self.loop.close()


async def _end_tasks() -> None:
    """All but this one, of the running loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class NbdServer:
    """Serves `namespace` at the Unix socket `path`, to processes of this user and root.

    name: of the export; the empty name is always accepted too.
    read_only: writes are refused with EPERM.
    threads: event loops of their own that connections are spread over; 0: the running one. Each
        takes one of the controller's queue pairs; there are never more than the controller has.
    depth: requests of one connection in flight, and its memory in units of 128 KiB (or of what one
        command may move, where that is less).

    `async with` starts and ends it. On one event loop, that of the caller. A connection whose
    namespace is formatted, removed or replaced ends, since NBD has no way to say so; so do all when
    the server closes. Requests that were in flight then have no answer: a client that connects
    again has to send them again, which is safe, as NBD's writes and trims may be repeated. Raises
    ConfigurationError for namespaces with metadata, transports without queue pairs, and values out
    of range; OSError when the socket can't be made.
    """

    def __init__(
        self,
        namespace: Namespace,
        path: str,
        *,
        name: str = "",
        read_only: bool = False,
        threads: int = 0,
        depth: int = 64,
    ) -> None:
        if not 0 <= threads <= 64:
            raise ConfigurationError(f"threads is {threads}, outside of 0 to 64")
        if not 1 <= depth <= 1024:
            raise ConfigurationError(f"depth is {depth}, outside of 1 to 1024")
        if len(name.encode()) > 4096:
            raise ConfigurationError(f"an export name of {len(name.encode())} bytes is over NBD's limit of 4096")
        if namespace.has_metadata:
            raise ConfigurationError(
                f"namespace {namespace.nsid} has {namespace.identify.metadata_size} bytes of metadata in each block, "
                "and a block device can't carry them"
            )
        self.namespace = namespace
        self.path = path
        self.read_only = read_only
        self._depth = depth
        self._n_threads = threads
        self._workers: list[_Worker] = []
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: dict[_nbd.Connection, _Worker] = {}
        self._accepting: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._served = 0
        step = max(4096, namespace.block_size)
        most = min(CELL_BYTES, namespace.max_blocks * namespace.block_size)
        self._cell = most // step * step
        if not self._cell:
            raise ConfigurationError(f"one command moves {most} bytes at most, and an export needs {step}")
        self.export = Export(
            name=name,
            nbytes=namespace.nbytes,
            flags=self._flags(),
            block_size=namespace.block_size,
            preferred=step,
            max_nbytes=min(MAX_REQUEST, depth * self._cell),
        )

    def _flags(self) -> Flag:
        oncs = self.namespace.controller.identify.oncs
        flags = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.SEND_TRIM | Flag.CAN_MULTI_CONN
        if oncs & Oncs.WRITE_ZEROES:
            flags |= Flag.SEND_WRITE_ZEROES
        return flags | Flag.READ_ONLY if self.read_only else flags

    # -- beginning and end -------------------------------------------------------------------------

    async def __aenter__(self) -> NbdServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listens. A socket that nothing listens at any more is replaced, one that is in use is
        not.
        """
        try:
            await self._start_workers()
            self._listener = _listen(self.path)
        except BaseException:
            await self.close()
            raise
        self._accepting = asyncio.create_task(self._accept(), name=f"NBD server at {self.path}")

    async def _start_workers(self) -> None:
        queues = self.namespace.controller.transport.queues
        for number in range(max(1, self._n_threads)):
            worker = _Worker(f"nbd-{number}" if self._n_threads else "")
            self._workers.append(worker)
            if await worker.run(queues.for_this_loop) is not None:
                continue
            self._workers.remove(worker)
            await worker.close()
            if not self._workers:
                raise ConfigurationError(f"{self.namespace.controller.uri}: no queue pair is left for an export")
            log.info("%s: %d queue pairs for %d threads", self.path, number, self._n_threads)
            break

    async def close(self) -> None:
        """Ends all connections, and the server. Memory of commands in flight stays with the
        controller.
        """
        if self._listener is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            self._listener.close()
            self._listener = None
        tasks = [task for task in [self._accepting, *self._tasks] if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._workers:
            await self._workers.pop().close()
        self._closed.set()

    async def wait_closed(self) -> None:
        """Until close() has been called."""
        await self._closed.wait()

    def inspect(self) -> dict[str, Any]:
        """Export, and counters of each connection, as plain data."""
        return {
            "path": self.path,
            "nsid": self.namespace.nsid,
            "nbytes": self.export.nbytes,
            "block_size": self.export.block_size,
            "read_only": self.read_only,
            "threads": len(self._workers),
            "served": self._served,
            "connections": [connection.inspect() for connection in list(self._connections)],
        }

    # -- connections -------------------------------------------------------------------------------

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, for now
                log.warning("%s: %s", self.path, error)
                await asyncio.sleep(0.1)
                continue
            client.setblocking(False)
            task = asyncio.create_task(self._serve(client), name=f"NBD connection at {self.path}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                async with asyncio.timeout(HANDSHAKE_LIMIT):
                    agreed = await shake_hands(client, self.export)
                worker = min(self._workers, key=lambda one: list(self._connections.values()).count(one))
                memory, offset = await self._memory()
                connection = None
                try:
                    connection = self._connection(client, agreed, memory, offset)
                    self._connections[connection] = worker
                    self._served += 1
                    await worker.run(partial(self._transmit, connection))
                finally:
                    if connection is not None:
                        del self._connections[connection]
                    if offset is not None:
                        memory.free()  # its pages stay until the last command of the connection is over
            except (NvmeError, OSError, TimeoutError) as error:
                log.info("%s: %s", self.path, error or "the handshake took too long")

    async def _memory(self) -> tuple[Any, int | None]:
        """Of one connection, and where it lies in its pool; None: the transport reaches all
        memory.
        """
        nbytes = self._depth * self._cell
        try:
            memory = await asyncio.to_thread(self.namespace.controller.transport.alloc, nbytes)
        except ConfigurationError:
            return HostMemory(nbytes), None
        return memory, memory.offset

    def _connection(self, client: socket.socket, agreed: Agreed, memory: Any, offset: int | None) -> _nbd.Connection:
        namespace, limits = self.namespace, self.namespace.limits
        oncs = namespace.controller.identify.oncs
        trim = min(limits.dsm_range_blocks, limits.dsm_blocks) if oncs & Oncs.DATASET_MANAGEMENT else 0
        return _nbd.Connection(
            client,
            memory,
            iova=memory.iova,
            offset=offset,
            cell_nbytes=self._cell,
            nbytes=self.export.nbytes,
            nsid=namespace.nsid,
            block_size=namespace.block_size,
            zero_blocks=limits.write_zeroes if oncs & Oncs.WRITE_ZEROES else 0,
            trim_blocks=trim,
            max_nbytes=self.export.max_nbytes,
            read_only=self.read_only,
            structured=agreed.structured,
        )

    async def _transmit(self, connection: _nbd.Connection) -> None:
        """On a worker's loop, until the connection ends."""
        loop = asyncio.get_running_loop()
        queue = await self.namespace.controller.transport.queues.for_this_loop()
        hot = getattr(queue, "hot", None)
        if not isinstance(hot, _hotpath.QueuePair):
            raise ConfigurationError(
                f"{self.namespace.controller.uri}: this way to a drive has no queue pairs to export"
            )

        def sleep(stream: _hotpath.Stream, read: bool, write: bool) -> None:
            if read:
                loop.add_reader(connection.fd, stream.wake)
            if write:
                loop.add_writer(connection.fd, stream.wake)

        def wake(stream: _hotpath.Stream) -> None:
            loop.remove_reader(connection.fd)
            loop.remove_writer(connection.fd)

        await _hotpath.Stream(hot, connection, geometry=self.namespace.geometry, on_sleep=sleep, on_wake=wake)
        if connection.why is not None:
            log.info("%s: %s", self.path, connection.why)


def _listen(path: str) -> socket.socket:
    """A socket that this user and root may connect to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except FileNotFoundError:
                pass
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise ConfigurationError(f"{path} is in use by another server")
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(64)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
