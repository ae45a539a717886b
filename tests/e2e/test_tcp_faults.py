"""NVMe/TCP under network and target failures: no acknowledged write is lost, nothing hangs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest
from driving import eventually
from tcp_proxy import Mischief, Proxy, some_mischief

import nvme_async
from nvme_async.driver.tcp import properties
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig
from nvme_async.errors import CommandError, ControllerError, ControllerGone
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Cns

NQN = "nqn.2024-01.io.example:faults"
FAST = {"reconnect_delay": 0.05, "connect_timeout": 10.0, "retries": 100, "command_timeout": 20}


@pytest.fixture
def target():
    with EmulatedController("size=64MiB") as emulator:
        emulator.port = emulator.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN))[0][1]
        yield emulator


@pytest.fixture
def proxy(target):
    proxies = []

    def make(mischief=None):
        proxies.append(Proxy(("127.0.0.1", target.port), mischief))
        proxies[-1].uri = f"tcp:127.0.0.1:{proxies[-1].port}/{NQN}"
        return proxies[-1]

    yield make
    for one in proxies:
        one.close()


def block(worker: int, version: int, nbytes: int) -> bytes:
    return (worker.to_bytes(4, "little") + version.to_bytes(8, "little") + b"....").ljust(16, b".") * (nbytes // 16)


class Load:
    """Workers that write versions and read them back: every acknowledged write is there,
    complete.
    """

    def __init__(self, namespace, workers: int = 8, blocks: int = 3) -> None:
        self.namespace, self.blocks = namespace, blocks
        self.acknowledged = dict.fromkeys(range(workers), 0)
        self.transient = 0
        self.gap = 0.0
        self.stop = False

    def count(self, error: CommandError) -> None:
        """Transient Transport Error: a digest was wrong. No other error is allowed."""
        if error.sc != 0x22:
            raise error
        self.transient += 1

    async def work(self, worker: int) -> None:
        nbytes = self.blocks * self.namespace.block_size
        version = 0
        while not self.stop:
            version += 1
            data = block(worker, version, nbytes)
            began = time.monotonic()
            while True:
                try:
                    await self.namespace.write(worker * 64, data)
                    break
                except CommandError as error:
                    self.count(error)
            self.acknowledged[worker] = version
            try:
                found = await self.namespace.read(worker * 64, self.blocks)
            except CommandError as error:
                self.count(error)
            else:
                assert found == data, (worker, version)
            self.gap = max(self.gap, time.monotonic() - began)

    async def run(self, seconds: float, enough: Callable[[], bool] = lambda: True) -> None:
        """For so long, and until there was enough of what the test is about."""
        tasks = [asyncio.ensure_future(self.work(worker)) for worker in self.acknowledged]
        await asyncio.sleep(seconds)
        await eventually(enough, 60.0)
        self.stop = True
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)

    async def check(self, namespace) -> None:
        for worker, version in self.acknowledged.items():
            data = await namespace.read(worker * 64, self.blocks)
            assert data == block(worker, version, len(data)), (worker, version)


async def test_connections_that_are_cut_under_load_cost_no_error(target, proxy):
    through = proxy()
    async with nvme_async.open(through.uri, **FAST) as controller:
        load = Load(controller.namespaces[1])
        task = asyncio.ensure_future(load.run(1.2, lambda: controller.resets >= 4))
        while not load.stop:
            await asyncio.sleep(0.15)
            through.cut_all()
        await task
        assert load.transient == 0
        assert all(load.acknowledged.values())
    async with nvme_async.open(f"tcp:127.0.0.1:{target.port}/{NQN}") as direct:
        await load.check(direct.namespaces[1])


@pytest.mark.parametrize("seed", range(3))
async def test_all_kinds_of_network_faults(target, proxy, seed):
    rng = random.Random(seed)
    through = proxy(lambda number: some_mischief(rng, number) if number > 2 else None)
    async with nvme_async.open(through.uri, hdr_digest=True, data_digest=True, **FAST) as controller:
        load = Load(controller.namespaces[1])
        task = asyncio.ensure_future(load.run(2.0, lambda: through.cuts + through.flips > 3))
        while not load.stop:  # a connection may have got no fault
            await asyncio.sleep(0.5)
            through.cut_all()
        await task
        through.mischief = None
    async with nvme_async.open(f"tcp:127.0.0.1:{target.port}/{NQN}") as direct:
        await load.check(direct.namespaces[1])


@pytest.mark.parametrize("way", ["up", "down"])
async def test_digests_detect_corrupted_bytes(target, proxy, way):
    """Each connection has one flipped bit. Digests detect every one: no wrong data, no hang."""
    offsets = iter(range(200, 400_000, 3001))
    through = proxy(lambda number: Mischief(flip_after=next(offsets), flip=way) if number > 2 else None)
    async with nvme_async.open(through.uri, hdr_digest=True, data_digest=True, **FAST) as controller:
        load = Load(controller.namespaces[1])

        def seen() -> int:
            [queue], stats = controller.inspect()["io_queues"], target.tcp_stats()
            kinds = ("header_digest_errors", "data_digest_errors")
            return sum(counters.get(kind, 0) for counters in (queue.get("connection", {}), stats) for kind in kinds)

        task = asyncio.ensure_future(load.run(1.5, lambda: through.flips > 3 and seen() > 0))
        while not load.stop:
            through.cut_all()
            await asyncio.sleep(0.18)
        await task
        through.mischief = None
    async with nvme_async.open(f"tcp:127.0.0.1:{target.port}/{NQN}") as direct:
        await load.check(direct.namespaces[1])


async def test_a_stream_that_arrives_byte_by_byte(target, proxy):
    through = proxy(lambda number: Mischief(piece=1))
    async with nvme_async.open(through.uri, hdr_digest=True, data_digest=True, **FAST) as controller:
        namespace = controller.namespaces[1]
        await namespace.write(3, b"x" * 8192)
        assert await namespace.read(3, 2) == b"x" * 8192


async def test_a_handshake_cut_at_any_byte_fails_cleanly(proxy):
    """The bring-up fails with an error at each byte of the controller's first messages, and nothing
    stays open.
    """
    for cut in [*range(0, 160, 7), 127, 128, 129, 151, 152]:
        through = proxy(lambda number, cut=cut: Mischief(cut_after=cut))
        with pytest.raises(ControllerError):
            async with asyncio.timeout(60):
                await nvme_async.open(through.uri, ctrl_loss_tmo=0.1, **FAST)


async def test_the_target_ends_and_comes_back_under_load(tmp_path):
    config = TcpConfig(nqn=NQN)
    file = tmp_path / "disk"
    emulator = EmulatedController(f"size=16MiB,medium=file,path={file}")
    port = emulator.serve_tcp(("127.0.0.1", 0), config=config)[0][1]
    try:
        async with nvme_async.open(f"tcp:127.0.0.1:{port}/{NQN}", **FAST) as controller:
            load = Load(controller.namespaces[1])
            task = asyncio.ensure_future(load.run(2.5))
            for _ in range(2):
                await asyncio.sleep(0.4)
                await asyncio.to_thread(emulator.close)
                await asyncio.sleep(0.4)
                emulator = EmulatedController(f"size=16MiB,medium=file,path={file}")
                emulator.serve_tcp(("127.0.0.1", port), config=config)
            await task
            assert load.gap < 20
            await load.check(controller.namespaces[1])
    finally:
        emulator.close()


async def test_a_target_that_does_not_come_back_fails_the_controller(target):
    controller = await nvme_async.open(f"tcp:127.0.0.1:{target.port}/{NQN}", ctrl_loss_tmo=0.5, **FAST)
    await asyncio.to_thread(target.close)
    async with asyncio.timeout(60):
        with pytest.raises(ControllerGone, match="ctrl_loss_tmo"):
            await controller.namespaces[1].read(0)
    assert controller.state == "failed"
    await controller.close()


async def test_close_does_not_wait_for_a_lost_target(target):
    controller = await nvme_async.open(f"tcp:127.0.0.1:{target.port}/{NQN}", **FAST)
    await asyncio.to_thread(target.close)
    await asyncio.sleep(0.2)
    began = time.monotonic()
    await controller.close()
    assert time.monotonic() - began < 20


async def test_a_network_that_is_silent_costs_no_error(proxy, monkeypatch):
    """A slow command leads to a read of CSTS, which gets no answer either: the controller is
    connected again, not given up.
    """
    through = proxy()
    options = {**FAST, "command_timeout": 1.0, "abort_timeout": 0.2}
    async with nvme_async.open(through.uri, **options) as controller:
        monkeypatch.setattr(properties, "SECONDS", 0.3)
        data = b"x" * controller.namespaces[1].block_size
        await controller.namespaces[1].write(0, data)
        through.silence()
        assert await asyncio.wait_for(controller.namespaces[1].read(0), 60) == data
        assert controller.state == "ready"
        assert controller.resets >= 1


async def test_an_admin_command_in_a_silent_network_leads_to_a_new_connection(proxy, monkeypatch):
    through = proxy()
    async with nvme_async.open(through.uri, **FAST, admin_timeout=2.0) as controller:
        monkeypatch.setattr(properties, "SECONDS", 0.3)
        through.silence()
        with pytest.raises(ControllerError):
            await asyncio.wait_for(controller._submit_admin(commands.identify(Cns.CONTROLLER)), 60)
        await eventually(lambda: controller.resets >= 1 and controller.state == "ready")
        await controller.namespaces[1].read(0)
