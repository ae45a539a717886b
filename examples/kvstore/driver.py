"""The driver process: a manager, the store on one of its namespaces, and a socket for the front
end.

    driver.py --device URI --socket PATH                   opens the device
    driver.py --take-over PATH --device URI --socket PATH  takes over the controller that a
                                                           predecessor offers at PATH

Prints "ready" once it answers on its socket. It ends when it has handed the controller over, on
SIGTERM, and when the front end disconnects.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable

import uvloop
from store import Store, StoreFull
from wire import Operation, Status, answer, read_request

from nvme_async import Manager, NvmeError
from nvme_async.manager import ManagerOptions, SavedDevices

# One loop, so that I/O stays on it; and little memory, because a successor gets all of it.
OPTIONS: ManagerOptions = {"workers": 1, "keepalive": True, "pool_bytes": 16 << 20}


class Service:
    """Answers requests from the store until the drive has been handed over. Owns the manager
    until close().
    """

    def __init__(self, manager: Manager, store: Store, device: str) -> None:
        self._manager = manager
        self._store = store
        self._device = device
        self._moved = False
        self._busy = 0
        self.ended = asyncio.Event()
        self._operations: dict[Operation, Callable[[bytes, bytes], Awaitable[bytes | None]]] = {
            Operation.GET: self._get,
            Operation.PUT: self._put,
            Operation.DELETE: self._delete,
            Operation.STATS: self._stats,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The front end's connection."""
        tasks: set[asyncio.Task[None]] = set()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                task = asyncio.create_task(self._answer(writer, *await read_request(reader)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        writer.close()
        self.ended.set()

    async def _answer(
        self, writer: asyncio.StreamWriter, number: int, operation: Operation, key: bytes, value: bytes
    ) -> None:
        if operation is Operation.HAND_OVER:
            reply = await self._hand_over(value.decode())
        elif self._moved:
            reply = Status.MOVED, b""
        else:
            self._busy += 1
            try:
                found = await self._operations[operation](key, value)
                reply = (Status.MISSING, b"") if found is None else (Status.OK, found)
            except StoreFull as error:
                reply = Status.FULL, str(error).encode()
            except (NvmeError, OSError, ValueError) as error:
                reply = Status.ERROR, f"{type(error).__name__}: {error}".encode()
            finally:
                self._busy -= 1
        writer.write(answer(number, *reply))

    async def _get(self, key: bytes, _: bytes) -> bytes | None:
        return await self._store.get(key)

    async def _put(self, key: bytes, value: bytes) -> bytes:
        await self._store.put(key, value)
        return b""

    async def _delete(self, key: bytes, _: bytes) -> bytes:
        await self._store.delete(key)
        return b""

    async def _stats(self, _: bytes, __: bytes) -> bytes:
        return json.dumps({"pid": os.getpid(), **self._store.inspect()}).encode()

    async def _hand_over(self, path: str) -> tuple[Status, bytes]:
        """Requests that have started are finished and answered; the successor handles the rest.
        If the hand-over fails, this process continues.
        """
        self._moved = True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as successor:
                successor.settimeout(10)
                await asyncio.to_thread(successor.connect, path)
                while self._busy:
                    await asyncio.sleep(0.0005)
                with await self._manager.save() as saved:
                    saved.check()
                    try:
                        await asyncio.to_thread(saved.send, successor)
                    except (NvmeError, OSError):
                        await self._take_back(saved)
                        raise
        except (NvmeError, OSError) as error:
            self._moved = False
            return Status.ERROR, f"{type(error).__name__}: {error}".encode()
        return Status.OK, b""

    async def _take_back(self, saved: SavedDevices) -> None:
        """No process took it. The saved controller is still running, so this process becomes its
        own successor.
        """
        await self._manager.close()
        self._manager = await Manager.restore(saved, **OPTIONS)
        self._store = await Store.open(await self._manager.namespace(self._device, 1))

    async def close(self) -> None:
        await self._store.settle()
        await self._manager.close()


def _receive(path: str) -> SavedDevices:
    """Receives the predecessor's bundle. Blocks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        try:
            listening.listen(1)
            print("waiting", flush=True)
            listening.settimeout(30)
            predecessor, _ = listening.accept()
        finally:
            os.unlink(path)
    with predecessor:
        return SavedDevices.receive(predecessor, timeout=30)


async def run(device: str, path: str, take_over: str | None) -> None:
    if take_over is None:
        manager = Manager(**OPTIONS)
    else:
        with await asyncio.to_thread(_receive, take_over) as saved:
            manager = await Manager.restore(saved, **OPTIONS)
    async with manager:
        store = await Store.open(await manager.namespace(device, 1))
        service = Service(manager, store, device)
        server = await asyncio.start_unix_server(service.serve, path)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.ended.set)
        print("ready", flush=True)
        await service.ended.wait()
        server.close()
        os.unlink(path)
        await service.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="The driver process of the key-value store")
    parser.add_argument("--device", required=True, metavar="URI")
    parser.add_argument("--socket", required=True, metavar="PATH")
    parser.add_argument("--take-over", metavar="PATH")
    arguments = parser.parse_args()
    try:
        uvloop.run(run(arguments.device, arguments.socket, arguments.take_over))
    except NvmeError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
