"""An NBD server on a Unix socket whose disk is a namespace.

The handshake is Python's. After it, each connection is C alone (ext/nbd): requests become NVMe
commands of the event loop's queue pair, in memory that the controller reaches, without the
interpreter. Connections are spread over `threads` event loops, each with a queue pair of its own.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import Any

from nvme_async.driver.namespace import Namespace
from nvme_async.errors import ConfigurationError, NvmeError
from nvme_async.export.handshake import Agreed, Export, Flag, shake_hands
from nvme_async.export.predecessor import NBD_TAG
from nvme_async.manager.workers import Worker
from nvme_async.native import _hotpath, _nbd
from nvme_async.native._placement import HostMemory
from nvme_async.runtime.loops import until_done
from nvme_async.runtime.sockets import ListeningSocket
from nvme_async.runtime.tasks import in_thread
from nvme_async.spec.identify import Oncs

log = logging.getLogger("nvme_async")

CELL_BYTES = 128 << 10
"""Data of one NVMe command, at most."""
MAX_REQUEST = 32 << 20
"""What a client may ask for at once, at most: NBD's usual limit."""
HANDSHAKE_LIMIT = 10.0
"""Seconds."""
BACKLOG = 64
JOIN_LIMIT = 10.0
"""Seconds until a thread that doesn't end is left alone."""


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
    ConfigurationError for namespaces with metadata, transports without queue pairs, values out of
    range, and a socket that can't be made.
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
            raise ConfigurationError(f"threads is {threads}, must be 0 to 64")
        if not 1 <= depth <= 1024:
            raise ConfigurationError(f"depth is {depth}, must be 1 to 1024")
        if len(name.encode()) > 4096:
            raise ConfigurationError(f"an export name of {len(name.encode())} bytes exceeds NBD's limit of 4096")
        if namespace.has_metadata:
            raise ConfigurationError(
                f"namespace {namespace.nsid} has {namespace.identify.metadata_size} bytes of metadata in each block, "
                "which a block device can't carry"
            )
        self.namespace = namespace
        self.path = path
        self.read_only = read_only
        self._depth = depth
        self._n_threads = threads
        self._workers: list[Worker] = []  # none: the running loop serves
        self._listener: ListeningSocket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: dict[_nbd.Connection, Worker | None] = {}
        self._accepting: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._served = 0
        step = max(4096, namespace.block_size)
        most = min(CELL_BYTES, namespace.max_blocks * namespace.block_size)
        self._cell = most // step * step
        if not self._cell:
            raise ConfigurationError(f"one command transfers at most {most} bytes; an export needs {step}")
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
            self._listener = ListeningSocket(self.path, backlog=BACKLOG)
            self._listener.socket.setblocking(False)
        except BaseException:
            await self.close()
            raise
        self._accepting = asyncio.create_task(self._accept(), name=f"NBD server at {self.path}")

    async def _start_workers(self) -> None:
        queues = self.namespace.controller.transport.queues
        for number in range(self._n_threads):
            worker = Worker(f"nbd-{number}", "uvloop", None)
            worker.start()
            self._workers.append(worker)
            if await worker.call(queues.for_this_loop) is None:
                await self._end(self._workers.pop())
                log.info("%s: %d queue pairs for %d threads", self.path, number, self._n_threads)
                break
        if not self._workers and (self._n_threads or await queues.for_this_loop() is None):
            raise ConfigurationError(f"{self.namespace.controller.uri}: no queue pair is available for an export")

    async def _end(self, worker: Worker) -> None:
        """Its loop's queue pair is the controller's to take back."""
        worker.stop()
        if not await asyncio.to_thread(worker.join, JOIN_LIMIT):
            log.warning("%s: thread %s does not end", self.path, worker.name)

    async def close(self) -> None:
        """Ends all connections, and the server. Memory of commands in flight stays with the
        controller.
        """
        tasks = [task for task in [self._accepting, *self._tasks] if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.unlink()
            self._listener = None
        while self._workers:
            await self._end(self._workers.pop())
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
            "threads": max(1, len(self._workers)),
            "served": self._served,
            "connections": [connection.inspect() for connection in list(self._connections)],
        }

    # -- connections -------------------------------------------------------------------------------

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener.socket)
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
                memory, offset = await self._memory()
                busy = list(self._connections.values())  # without a wait in between: others choose too
                worker = min(self._workers, key=busy.count, default=None)
                connection = None
                try:
                    connection = self._connection(client, agreed, memory, offset)
                    self._connections[connection] = worker
                    self._served += 1
                    transmit = partial(self._transmit, connection)
                    await (transmit() if worker is None else until_done(worker.loop, transmit))
                finally:
                    if connection is not None:
                        del self._connections[connection]
                    if offset is not None:
                        memory.free()  # its pages stay until the last command of the connection is over
            except (NvmeError, OSError, EOFError, TimeoutError) as error:
                log.info("%s: %s", self.path, error or "the handshake took too long")

    async def _memory(self) -> tuple[Any, int | None]:
        """Of one connection, and where it lies in its pool; None: the transport reaches all
        memory.
        """
        nbytes = self._depth * self._cell
        try:
            memory = await in_thread(partial(self.namespace.controller.transport.alloc, nbytes, tag=NBD_TAG))
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
            raise ConfigurationError(f"{self.namespace.controller.uri}: this transport has no queue pairs to export")

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
