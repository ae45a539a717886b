"""A manager's handles over NVMe/TCP: a target that comes back is the same device, another drive in
its place is not.
"""

from __future__ import annotations

import asyncio

import pytest
from managed import became, eventually

from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig
from nvme_async.errors import ControllerError, ControllerGone, ControllerReplaced
from nvme_async.manager import Manager

NQN = "nqn.2024-01.io.example:managed"
FAST = {"reconnect_delay": 0.1, "ctrl_loss_tmo": 0.4, "connect_timeout": 10.0, "admin_timeout": 10.0}


def serve(port: int = 0, **options: object) -> tuple[EmulatedController, int]:
    words = ",".join(f"{name}={value}" for name, value in options.items())
    emulator = EmulatedController(f"size=16MiB,{words}")
    return emulator, emulator.serve_tcp(("127.0.0.1", port), config=TcpConfig(nqn=NQN))[0][1]


async def test_a_target_that_comes_back_is_the_same_device(tmp_path) -> None:
    medium = {"serial": "DRIVE-A", "medium": "file", "path": tmp_path / "disk"}
    target, port = serve(**medium)
    address = f"tcp:127.0.0.1:{port}/{NQN}"
    async with Manager(**FAST) as manager:
        handle = await manager.namespace(address, 1)
        await handle.write(3, b"a" * handle.block_size)
        await asyncio.to_thread(target.close)
        await eventually(lambda: manager.device(address).state != "ready")  # ctrl_loss_tmo is over
        with pytest.raises(ControllerGone, match="ctrl_loss_tmo"):
            await handle.read(3)
        target, _ = serve(port, **medium)
        await became(manager.device(address), "ready")
        assert await handle.read(3) == b"a" * handle.block_size
        await handle.write(4, b"b" * handle.block_size)
    target.close()


async def _write_on(handle):
    for _ in range(1000):
        try:
            await handle.write(3, b"for A".ljust(handle.block_size))
        except ControllerReplaced:
            raise
        except ControllerError:
            pass  # it was in flight when the target went
        await asyncio.sleep(0.05)


async def test_another_drive_at_the_target_gets_no_io_of_the_first() -> None:
    first, port = serve(serial="DRIVE-A")
    address = f"tcp:127.0.0.1:{port}/{NQN}"
    async with Manager(**FAST) as manager:
        handle = await manager.namespace(address, 1)
        await handle.write(3, b"a" * handle.block_size)
        await asyncio.to_thread(first.close)
        second, _ = serve(port, serial="DRIVE-B")
        writes = second.faults.add(queue="io", opcode=1)
        with pytest.raises(ControllerReplaced, match="DRIVE-B"):
            await _write_on(handle)
        assert writes.hits == 0
        new = await manager.namespace(address, 1)
        assert await new.read(3) == bytes(new.block_size)
        await manager.unload(address)
        second.close()
