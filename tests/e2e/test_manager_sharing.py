"""A manager whose devices are shared, and workers with managers of their own."""

from __future__ import annotations

import asyncio
import io
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from driving import eventually, pattern
from rich.console import Console
from sharing_kit import FAST

import nvme_async
from nvme_async.cli.inspect import as_lines, as_tree
from nvme_async.errors import ConfigurationError, ControllerGone
from nvme_async.manager import Manager
from nvme_async.sharing.places import place_of

ONE, TWO = "emulated:size=16MiB,block=4096", "emulated:size=32MiB,block=4096"


async def test_each_device_has_a_socket_also_one_that_is_loaded_later(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    async with Manager(**FAST) as owner:
        one = await owner.load(ONE)
        async with owner.share(path, queues=2):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
            two = await owner.load(TWO)
            with pytest.raises(ConfigurationError, match="already shared"):
                await owner.share(tmp_path / "other")
            with pytest.raises(
                ConfigurationError, match=r"2 controllers are shared at this path; choose one with \?device=URI"
            ):
                await nvme_async.open(f"shared:{path}", **FAST)
            for device in (one, two):
                async with nvme_async.open(f"shared:{path}?device={device.uri}", **FAST) as worker:
                    handle = await device.namespace(1)
                    assert worker.namespaces[1].nbytes == handle.nbytes
                    await worker.namespaces[1].write(3, pattern(4096, 3))
                    assert await handle.read(3) == pattern(4096, 3)
            state = owner.inspect()["devices"][two.uri]
            assert state["shared"] == place_of(TWO, str(path), True)
        assert owner.inspect()["devices"][two.uri]["shared"] is None
        assert list(path.iterdir()) == []
        with pytest.raises(ConfigurationError, match="0 controllers are shared at this path"):
            await nvme_async.open(f"shared:{path}")
        async with owner.share(path):  # again
            assert len(list(path.iterdir())) == 2


async def test_a_worker_has_a_manager_and_the_owner_is_serviced_beside_it(tmp_path: Path) -> None:
    async with Manager(keepalive=True, **FAST) as owner, owner.share(tmp_path), Manager(**FAST) as manager:
        device = await owner.load(ONE)
        uri = f"shared:{tmp_path}?device={ONE}"
        handle = await manager.namespace(uri, 1)
        await handle.write(5, pattern(4096, 5))
        await owner.service(ONE)  # live
        assert await handle.read(5) == pattern(4096, 5)
        leases = await device.worker.call(lambda: asyncio.sleep(0, device.controller))
        assert leases is not None
        assert len(leases.inspect()["leases"]) == 1
        await manager.service(uri)  # a new lease
        assert await handle.read(5) == pattern(4096, 5)
        assert len(leases.inspect()["leases"]) == 1
        assert (manager.inspect()["devices"][manager.device(uri).uri]["controller"]["transport"]) == "shared"


async def test_a_worker_comes_back_when_its_owner_does(tmp_path: Path) -> None:
    async with Manager(**FAST) as manager:
        async with Manager(**FAST) as owner, owner.share(tmp_path):
            await owner.load(ONE)
            uri = f"shared:{tmp_path}?device={ONE}"
            handle = await manager.namespace(uri, 1)
            await handle.read(0)
        with pytest.raises(ControllerGone):
            await handle.read(0)
        async with Manager(**FAST) as owner, owner.share(tmp_path):
            await owner.load(ONE)
            await eventually(lambda: manager.device(uri).state == "ready")
            assert await handle.read(0)


async def test_what_comes_after_the_path_is_a_device(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"only \?device=URI may follow the path, not \?divice=x"):
        await nvme_async.open(f"shared:{tmp_path}?divice=x")


async def test_inspect_top_and_metrics_show_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvme_async.sharing.worker._USAGE_SECONDS", 0.02)
    async with Manager(**FAST) as owner, owner.share(tmp_path):
        await owner.load(ONE)
        async with nvme_async.open(f"shared:{tmp_path}?device={ONE}", **FAST) as worker:
            before = owner.inspect()
            for lba in range(100):
                await worker.namespaces[1].read(lba)

            def lease() -> dict[str, Any]:
                [found] = owner.inspect()["devices"][ONE]["controller"]["leases"]
                return found  # type: ignore[no-any-return]

            await eventually(lambda: lease()["commands"] >= 100)
            now = owner.inspect()
            found = lease()
            assert (found["pid"], found["in_flight"], len(found["queues"])) == (os.getpid(), 0, 1)
            assert found["pool_bytes"] >= 1 << 20
            name = found["command"]
            [line] = [line for line in as_lines(before, now, 1.0) if f"pid {os.getpid()} {name}" in line]
            assert line.split()[4] == str(found["commands"])
            assert f"pid {os.getpid()} {name}" in "\n".join(as_lines(before, now, 1.0, 120, 30))
            console = Console(width=200, record=True, file=io.StringIO())
            console.print(as_tree(now, 200))
            assert str(found["commands"]) in console.export_text()
            labels = f'{{command="{name}",pid="{os.getpid()}",uri="{ONE}"}}'
            metrics = owner.metrics().decode()
            assert f"nvme_async_lease_commands_total{labels} {found['commands']:.1f}" in metrics
            assert f"nvme_async_lease_queue_pairs{labels} 1.0" in metrics
        await eventually(lambda: not owner.inspect()["devices"][ONE]["controller"]["leases"])
