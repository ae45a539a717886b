"""What decides whether keepalive is on for managed devices: arguments, environment, a keeper,
switching at run time, and what a restart finds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper_site import Site
from managed import Verifier, emulator, uri

from nvme_async.emulator import EmulatedController
from nvme_async.errors import ConfigurationError, HandedOver
from nvme_async.keepalive import config
from nvme_async.manager import Manager


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in config.VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


@pytest.mark.parametrize(
    ("words", "pool", "on"),
    [
        ("host,privatepool", None, True),
        ("Enabled", None, True),
        ("HOST,PRIVATEPOOL", "2048", True),
        ("host,noprivatepool", None, False),
        ("nohost,privatepool", None, False),
        ("nohost,noprivatepool", None, False),
        ("disabled", None, False),
        ("disabled,host,privatepool", None, False),
        ("host,privatepool", "off", False),
        ("host,privatepool", "0", False),
        ("host,privatepool", "plenty", False),
        ("on", None, False),
        (None, None, False),
    ],
)
async def test_the_environment_decides_about_keepalive(
    words: str | None, pool: str | None, on: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reference's table: how the controllers are opened, and the resulting state."""
    if words is not None:
        monkeypatch.setenv(config.KEEP_ALIVE, words)
    if pool is not None:
        monkeypatch.setenv(config.POOL, pool)
    address = uri()
    with caplog.at_level(logging.WARNING, logger="nvme_async"):
        async with Manager() as manager:
            device = await manager.load(address)
            state = device.inspect()["keepalive"]
            assert state["on"] is on
            assert state["decision"]["enabled"] is on
            assert device.controller is not None
            assert device.controller.keepalive is on
            assert device.controller.decision.startswith(f"keepalive {'on' if on else 'off'}: ")
            if on and pool:
                assert state["decision"]["pool_pages"] == int(pool)
            with await manager.save() as saved:
                assert (list(saved.bundles), saved.shut_down) == (([address], []) if on else ([], [address]))
    quoted = {"on": "'on'", "plenty": "'plenty'"}
    for value in (words, pool):
        if value in quoted:
            assert any(quoted[value] in record.message for record in caplog.records)


async def test_an_argument_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.KEEP_ALIVE, "disabled")
    async with Manager(keepalive="host,privatepool") as manager:
        one, two = await manager.load(uri()), await manager.load(uri(), keepalive=False)
        assert one.inspect()["keepalive"]["decision"]["setting_source"] == "argument keepalive"
        assert [one.inspect()["keepalive"]["on"], two.inspect()["keepalive"]["on"]] == [True, False]
    for options in ({"keepalive": "perhaps"}, {"pool_pages": -1}, {"keeper_wait": -1.0}):
        with pytest.raises(ConfigurationError):
            Manager(**options)  # type: ignore[arg-type]


async def test_a_switched_off_vfio_driver_opens_no_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.VFIO, "0")
    async with Manager() as manager:
        with pytest.raises(ConfigurationError, match="VFIO driver is switched off"):
            await manager.load("pci:0000:ff:1f.7")
        assert manager.devices == {}
        await manager.load(uri())


async def test_keepalive_is_switched_at_run_time() -> None:
    """Off: the next servicing is a bring-up. On: the next one is too, and creates a private pool;
    later ones are live. Load continues.
    """
    address = uri()
    async with Manager(keepalive=True) as manager:
        namespace = await manager.namespace(address, 1)
        device = manager.device(address)
        faults = emulator(manager, address).faults
        load = Verifier(namespace, tasks=4)

        async def enables_after_a_servicing() -> int:
            await load.more(20)
            await manager.service(address)
            await load.more(20)
            return faults.counters()["enables"]

        assert await enables_after_a_servicing() == 1
        await manager.switch_keepalive("disabled")
        state = device.inspect()["keepalive"]
        assert (state["on"], state["decision"]["enabled"]) == (True, False)
        assert await enables_after_a_servicing() == 2
        assert device.inspect()["keepalive"]["on"] is False
        later = await manager.load(uri())
        assert later.inspect()["keepalive"]["on"] is False
        assert await enables_after_a_servicing() == 3
        await manager.switch_keepalive(True, address)
        assert await enables_after_a_servicing() == 4
        assert device.inspect()["keepalive"]["on"] is True
        assert later.inspect()["keepalive"]["decision"]["enabled"] is False
        assert await enables_after_a_servicing() == 4
        with pytest.raises(ConfigurationError, match="perhaps"):
            await manager.switch_keepalive("perhaps")
        await load.stop()
        assert load.errors == []
        await manager.switch_keepalive(False)
        with await manager.save() as saved:  # when switched off, nothing is handed over although the driver could
            assert (saved.bundles, sorted(saved.shut_down)) == ({}, sorted([address, later.uri]))


async def test_a_saved_device_whose_successor_has_no_keepalive_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmulatedController("size=16MiB") as target:
        target.listen(tmp_path / "c.sock")
        address = f"vfio-user:{tmp_path}/c.sock"
        monkeypatch.setenv(config.KEEP_ALIVE, "enabled")
        async with Manager() as first:
            namespace = await first.namespace(address, 1)
            await namespace.write(3, b"3" * 4096)
            with await first.save() as saved:
                with pytest.raises(HandedOver):
                    await namespace.read(3)
                monkeypatch.setenv(config.KEEP_ALIVE, "nohost,privatepool")
                second = await Manager.restore(saved)
        async with second:
            assert target.faults.counters()["enables"] == 2
            assert await (await second.namespace(address, 1)).read(3) == b"3" * 4096


async def test_a_killed_managers_devices_go_to_the_next_manager(site: Site) -> None:
    """A keeper has them; the next manager's load() continues with the running controller."""
    driver = site.driver(
        """
        async with nvme_async.Manager(keeper=keeper) as manager:
            namespace = await manager.namespace(uri, 1)
            await namespace.write(0, b"A" * 4096)
            await manager.service(uri, keepalive=True)
            await namespace.write(1, b"B" * 4096)
            report("written")
            await next_line()
        """
    )
    assert driver.receive() == "written"
    [deposit] = site.deposits()
    assert (deposit.state, deposit.pid) == ("owned", driver.pid)
    driver.kill()
    async with Manager(keeper=site.keeper_path, keeper_wait=60) as manager:
        namespace = await manager.namespace(site.uri, 1)
        assert await namespace.read(0, 2) == b"A" * 4096 + b"B" * 4096
        assert site.lives()["enables"] == 1
        assert [deposit.state for deposit in site.deposits()] == ["owned"]
        await manager.service(site.uri, keepalive=True)
        assert [deposit.state for deposit in site.deposits()] == ["owned"]
        await manager.service(site.uri, keepalive=False)
        assert site.lives()["enables"] == 2
        assert [deposit.state for deposit in site.deposits()] == ["owned"]
        with await manager.save() as saved:
            # The bundles belong to their receiver; no other process may get them from the keeper.
            assert site.deposits() == []
            async with await Manager.restore(saved, keeper=site.keeper_path) as next_one:
                assert await (await next_one.namespace(site.uri, 1)).read(0) == b"A" * 4096
                assert [deposit.state for deposit in site.deposits()] == ["owned"]
    assert site.deposits() == []
