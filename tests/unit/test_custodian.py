"""The driver's side of a keeper on an event loop: cancellation, and a keeper that is restarted."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvme_async.errors import KeeperError
from nvme_async.keepalive import config
from nvme_async.keepalive.bundle import Bundle
from nvme_async.keepalive.custodian import KeeperCustodian, SystemdCustodian, find_custodian
from nvme_async.keepalive.keeper.client import Deposit, KeeperClient
from nvme_async.keepalive.keeper.process import listen
from nvme_async.keepalive.keeper.server import Keeper

URI = "vfio-user:/run/c.sock"


class Running:
    """A keeper in a thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.keeper = Keeper(listen(path))
        self.thread = threading.Thread(target=self.keeper.run)
        self.thread.start()

    def stop(self) -> None:
        self.keeper.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def deposits(self) -> list[Deposit]:
        with KeeperClient(self.path) as client:
            return client.deposits()


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Running]:
    running = Running(str(tmp_path / "k.sock"))
    yield running
    running.stop()


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with Bundle(URI, b"", {"pool": os.memfd_create("pool"), "irq.0": os.eventfd(0)}) as bundle:
        os.write(bundle.descriptors["pool"], b"pool")
        yield bundle


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_deposit_take_release_and_drop(keeper: Running, bundle: Bundle) -> None:
    before = open_descriptors()
    first, second = KeeperCustodian(keeper.path), KeeperCustodian(keeper.path)
    assert first.words == f"keeper {keeper.path}"
    assert await first.take(URI) is None
    with pytest.raises(KeeperError, match="belongs to"):
        await second.take(URI)
    await first.deposit(bundle)
    [deposit] = keeper.deposits()
    assert (deposit.state, deposit.fds) == ("owned", 2)
    await first.release(URI)
    taken = await second.take(URI)
    assert taken is not None
    assert taken.uri == URI
    assert os.pread(taken.descriptors["pool"], 10, 0) == b"pool"
    taken.close()
    await second.forget(URI)
    assert keeper.deposits()[0].state == "reserved"
    await second.drop(URI)
    assert keeper.deposits() == []
    first.close()
    second.close()
    async with asyncio.timeout(60):
        while open_descriptors() > before:  # the keeper, in this process, may not have closed its ends yet
            await asyncio.sleep(0.01)


async def test_a_successor_may_wait_and_stop_waiting(keeper: Running, bundle: Bundle) -> None:
    first, second = KeeperCustodian(keeper.path), KeeperCustodian(keeper.path)
    await first.deposit(bundle)
    waiting = asyncio.create_task(second.take(URI, wait=60))
    while not (keeper.deposits()[0].waiting):
        await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    while keeper.deposits()[0].waiting:
        await asyncio.sleep(0.01)
    waiting = asyncio.create_task(second.take(URI, wait=60))
    while not (keeper.deposits()[0].waiting):
        await asyncio.sleep(0.01)
    await first.release(URI)
    taken = await waiting
    assert taken is not None
    taken.close()
    first.close()
    second.close()


async def test_a_keeper_that_is_restarted_gets_the_latest_deposit_again(
    keeper: Running, bundle: Bundle, tmp_path: Path
) -> None:
    custodian = KeeperCustodian(keeper.path)
    await custodian.deposit(bundle)
    os.pwrite(bundle.descriptors["pool"], b"next", 0)
    keeper.stop()
    os.unlink(keeper.path)
    await asyncio.sleep(0.3)
    keeper.__init__(keeper.path)  # type: ignore[misc]
    async with asyncio.timeout(60):
        while [(deposit.name, deposit.state, deposit.fds) for deposit in keeper.deposits()] != [(URI, "owned", 2)]:
            await asyncio.sleep(0.02)
    await custodian.release(URI)
    with KeeperClient(keeper.path) as client:
        fds = client.get(URI)
        assert os.pread(fds["pool"], 10, 0) == b"next"
        for fd in fds.values():
            os.close(fd)
    custodian.close()


async def test_a_missing_keeper_is_an_error(tmp_path: Path, bundle: Bundle) -> None:
    custodian = KeeperCustodian(str(tmp_path / "nothing"))
    with pytest.raises(KeeperError, match="no keeper"):
        await custodian.take(URI)
    with pytest.raises(KeeperError, match="no keeper"):
        await custodian.deposit(bundle)
    custodian.close()


async def test_the_choice_of_the_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "command_line", config.CommandLine())
    assert find_custodian(None) is None
    assert find_custodian("none") is None
    assert isinstance(find_custodian("systemd"), SystemdCustodian)
    path = find_custodian("/run/k.sock")
    assert isinstance(path, KeeperCustodian)
    config.command_line.keeper = "/run/other.sock"
    other = find_custodian(None)
    assert isinstance(other, KeeperCustodian)
    assert other.path == "/run/other.sock"
    assert find_custodian("none") is None
