"""A process of test_fused_and_normal.py: one Manager with a normal and a fused controller, and
writers on both whose journal survives the process.

    HOW KEEPER JOURNAL SOCKET URI URI       HOW: fresh, handover, exec, keeper
"""

from __future__ import annotations

import asyncio
import mmap
import socket
import struct
import sys

from nvme_async.errors import HandedOver
from nvme_async.keepalive import execute
from nvme_async.manager import ManagedNamespace, Manager, SavedDevices

BLOCKS = 32
"""Of each device; each has a writer."""
ENTRY = struct.Struct("<QQ")  # what was issued, and what was acknowledged


class Journal:
    """In a file that all processes of the test map."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def get(self, device: int, block: int) -> tuple[int, int]:
        issued, acked = ENTRY.unpack_from(self._memory, ENTRY.size * (device * BLOCKS + block))
        return issued, acked

    def set(self, device: int, block: int, issued: int, acked: int) -> None:
        ENTRY.pack_into(self._memory, ENTRY.size * (device * BLOCKS + block), issued, acked)


def content(device: int, block: int, number: int, size: int) -> bytes:
    return (struct.pack("<QQQ", device, block, number) * (size // 24 + 1))[:size] if number else bytes(size)


async def verify(journal: Journal, device: int, namespace: ManagedNamespace) -> None:
    for block in range(BLOCKS):
        data = await namespace.read(block)
        issued, acked = journal.get(device, block)
        found = next(
            (number for number in {acked, issued} if data == content(device, block, number, namespace.block_size)), None
        )
        assert found is not None, f"device {device}, block {block}: neither {acked} nor {issued}: {data[:24]!r}"
        journal.set(device, block, found, found)


async def write(journal: Journal, device: int, block: int, namespace: ManagedNamespace) -> None:
    number = journal.get(device, block)[0]
    try:
        while True:
            number += 1
            journal.set(device, block, number, number - 1)
            await namespace.write(block, content(device, block, number, namespace.block_size))
            journal.set(device, block, number, number)
    except HandedOver:
        pass


async def started(how: str, keeper: str, path: str, uris: list[str]) -> Manager:
    if how == "handover":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            with SavedDevices.receive(sock) as saved:
                manager = await Manager.restore(saved, keeper=keeper)
                sock.sendall(b".")
                return manager
    manager = Manager(keeper=keeper, keepalive=True, keeper_wait=60.0)
    await manager.load(uris[0])
    await manager.load(uris[1], quirks="+keepalive-by-class")
    return manager


async def pass_on(manager: Manager, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("listening", flush=True)
        sock, _ = await asyncio.to_thread(listener.accept)
    with sock, await manager.save() as saved:
        saved.check()
        await asyncio.to_thread(saved.send, sock)
        assert await asyncio.to_thread(sock.recv, 1) == b"."


async def main() -> None:
    how, keeper, journal_path, path, *uris = sys.argv[1:]
    journal = Journal(journal_path)
    manager = await started(how, keeper, path, uris)
    controllers = [manager.device(uri).controller for uri in uris]
    assert all(controller is not None for controller in controllers)
    print("up", *(int(controller.fused) for controller in controllers if controller), flush=True)
    namespaces = [await manager.namespace(uri, 1) for uri in uris]
    await asyncio.gather(*(verify(journal, device, namespace) for device, namespace in enumerate(namespaces)))
    print("verified", *(len(controller.adopted) for controller in controllers if controller), flush=True)
    writers = [
        asyncio.ensure_future(write(journal, device, block, namespace))
        for device, namespace in enumerate(namespaces)
        for block in range(BLOCKS)
    ]
    order = (await asyncio.to_thread(sys.stdin.readline)).strip()
    if order == "exec":
        saved = await manager.save()
        saved.check()
        argv = [sys.executable, __file__, "exec", *sys.argv[2:]]
        execute.replace(list(saved.bundles.values()), argv, dict(execute.os.environ))
    if order == "handover":
        await pass_on(manager, path)
    else:
        for writer in writers:
            writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)
    await manager.close()
    print("closed", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
