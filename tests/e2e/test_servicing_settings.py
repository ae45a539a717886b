"""The effect of the servicing settings on a controller and its memory."""

from __future__ import annotations

import asyncio
import ctypes
import platform
from pathlib import Path

import pytest
from keeper_site import Site, settings, site  # noqa: F401 - fixtures

import nvme_async
from nvme_async.dma import Pool
from nvme_async.dma.numa import memory_nodes
from nvme_async.emulator import EmulatedController

SYS_GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236}
MPOL_DEFAULT, MPOL_PREFERRED, MPOL_F_ADDR = 0, 1, 2


@pytest.mark.parametrize("rule", ["release", "debug"])
async def test_a_pool_sized_by_rule_holds_a_queue_pair_per_processor(rule: str) -> None:
    async with nvme_async.open(
        "emulated:size=64MiB", keepalive=True, keeper="none", pool_pages=rule, hugepages="never"
    ) as controller:
        namespace = controller.namespaces[1]
        data = bytes(range(256)) * 512
        await asyncio.gather(*(namespace.write(32 * i, data) for i in range(2)))
        assert await asyncio.gather(*(namespace.read(32 * i, 32) for i in range(2))) == [data] * 2
        state = controller.inspect()
        assert f"{rule}: " in state["keepalive"]["settings"]["pool_how"]
        assert state["memory"]["pools"][0]["nbytes"] >= 2 << 20


def policy(address: int) -> tuple[int, int]:
    """(mode, nodes as bits) of shared memory at an address."""
    number = SYS_GET_MEMPOLICY.get(platform.machine())
    if number is None:
        pytest.skip("the system call's number isn't known here")
    mode, nodes = ctypes.c_int(-1), (ctypes.c_ulong * 16)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, ctypes.byref(mode), nodes, 1024, ctypes.c_void_p(address), MPOL_F_ADDR):
        pytest.skip("the kernel knows no memory policies")
    return mode.value, nodes[0]


def test_equal_parts_of_a_pool_prefer_consecutive_nodes() -> None:
    nodes = memory_nodes()
    if not nodes:
        pytest.skip("the kernel reports no NUMA nodes")
    node = nodes[0]
    with Pool(64 << 20, iova=1 << 32, hugepages="never", nodes=(node, node, node)) as pool:
        if not pool.nodes:
            pytest.skip("the kernel refuses memory policies")
        assert [part for part, _, _ in pool.nodes] == [node] * 3
        at = 0
        for _, offset, nbytes in pool.nodes:
            assert (offset, offset % (2 << 20)) == (at, 0)
            assert abs(nbytes - pool.nbytes // 3) <= 2 << 20
            at += nbytes
            assert policy(pool.address + offset) == (MPOL_PREFERRED, 1 << node)
            assert policy(pool.address + offset + nbytes - 1) == (MPOL_PREFERRED, 1 << node)
        assert at == pool.nbytes
        assert pool.inspect()["nodes"][1] == {"node": node, "offset": pool.nodes[1][1], "nbytes": pool.nodes[1][2]}
        # The policy belongs to the memory, so a successor's mapping has it too.
        with Pool.attach(pool.fd) as attached:
            assert policy(attached.address) == (MPOL_PREFERRED, 1 << node)
            attached.detach()
    with Pool(64 << 20, iova=1 << 32, hugepages="never") as pool:
        assert pool.nodes == ()
        assert policy(pool.address)[0] == MPOL_DEFAULT


def test_a_missing_numa_node_is_ignored() -> None:
    with Pool(4 << 20, iova=1 << 32, hugepages="never", nodes=(1023,)) as pool:
        assert pool.nodes == ()
        pool.alloc(4096, owner="x").free()


def test_memory_nodes(tmp_path: Path) -> None:
    assert memory_nodes(tmp_path) == ()
    (tmp_path / "sys/devices/system/node").mkdir(parents=True)
    listing = tmp_path / "sys/devices/system/node/has_memory"
    for text, nodes in (("0\n", (0,)), ("0-2,5\n", (0, 1, 2, 5)), ("\n", ())):
        listing.write_text(text)
        assert memory_nodes(tmp_path) == nodes


async def test_inspect_shows_a_split_pool() -> None:
    async with nvme_async.open("emulated:size=16MiB", keepalive=True, keeper="none", pool_numa="split") as controller:
        state = controller.inspect()
        assert "pool split over NUMA nodes (argument pool_numa)" in state["keepalive"]["decision"]
        parts = state["memory"]["pools"][0]["nodes"]
        assert [part["node"] for part in parts] == list(memory_nodes()) or parts == []


@pytest.mark.parametrize("always", [False, True])
async def test_always_flr_resets_at_each_open_but_not_at_a_live_restore(
    always: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENHCL_NVME_ALWAYS_FLR", str(int(always)))
    device = f"{tmp_path}/device"
    with EmulatedController("size=16MiB") as emulator:
        emulator.listen(device)

        def resets() -> int:
            return int(emulator.faults.counters()["resets"])

        controller = await nvme_async.open(f"vfio-user:{device}", keepalive=True, keeper="none")
        await controller.namespaces[1].write(0, b"1" * 4096)
        first = resets()
        with await controller.save() as bundle:
            controller = await nvme_async.keepalive.restore(bundle)
        assert await controller.namespaces[1].read(0) == b"1" * 4096
        assert resets() == first
        assert controller.options.always_flr is always
        await controller.close()
        await left(emulator)
        before = resets()
        controller = await nvme_async.open(f"vfio-user:{device}", keepalive=True, keeper="none")
        assert await controller.namespaces[1].read(0) == b"1" * 4096
        again = resets() - before
        await controller.close()
    async with EmulatedOnce(tmp_path, monkeypatch) as plain:
        assert again - plain == int(always)


async def left(emulator: EmulatedController) -> None:
    """Until the emulator has noticed that its client is gone: then it resets the controller."""
    async with asyncio.timeout(60):
        while emulator.stats()["connected"]:
            await asyncio.sleep(0.001)


class EmulatedOnce:
    """The number of resets of an open() without the setting."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = f"{folder}/plain"
        self._monkeypatch = monkeypatch

    async def __aenter__(self) -> int:
        self._monkeypatch.delenv("OPENHCL_NVME_ALWAYS_FLR")
        with EmulatedController("size=16MiB") as emulator:
            emulator.listen(self._path)
            for _ in range(2):
                await left(emulator)
                before = emulator.faults.counters()["resets"]
                async with nvme_async.open(f"vfio-user:{self._path}", keepalive=True, keeper="none"):
                    opened = emulator.faults.counters()["resets"] - before
        return int(opened)

    async def __aexit__(self, *_: object) -> None:
        return None


async def test_the_next_process_reclaims_if_the_environment_disables_keepalive(site: Site) -> None:  # noqa: F811
    """OPENHCL_DISABLE_NVME_KEEP_ALIVE overrides the argument: the controller is reset first."""
    first = site.driver(
        """
        controller = await nvme_async.open(uri, keeper=keeper)
        await controller.namespaces[1].write(0, b"A" * 4096)
        report(controller.keepalive)
        await next_line()
        """
    )
    assert first.receive() == "True"
    first.kill()
    before = site.lives()
    second = site.driver(
        """
        async with nvme_async.open(uri, keeper=keeper, keepalive=True, keeper_wait=60) as controller:
            report(controller.keepalive, controller.decision)
            report((await controller.namespaces[1].read(0))[:1])
        """,
        OPENHCL_DISABLE_NVME_KEEP_ALIVE="1",
    )
    said = second.receive()
    assert said.startswith("False keepalive off: it is disabled")
    assert "(environment OPENHCL_DISABLE_NVME_KEEP_ALIVE)" in said
    assert second.receive() == "b'A'"
    assert site.lives()["disables"] > before["disables"]
