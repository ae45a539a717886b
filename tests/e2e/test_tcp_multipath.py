"""Several NVMe/TCP paths to one subsystem: ANA states, lost paths, and what the application sees of
both.
"""

from __future__ import annotations

import asyncio
import time
from array import array

import attrs
import pytest
from driving import eventually
from rich.console import Console
from tcp_proxy import Proxy
from test_tcp_faults import Load

import nvme_async
from nvme_async.cli.inspect import as_lines, as_tree
from nvme_async.driver.tcp import properties
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.faults import FOREVER
from nvme_async.emulator.tcp import TcpConfig
from nvme_async.errors import ConfigurationError, ControllerError, ControllerGone, ControllerTimeout, InvalidNamespace
from nvme_async.spec import commands

NQN = "nqn.2024-01.io.example:paths"
FAST = {"reconnect_delay": 0.05, "connect_timeout": 10.0, "command_timeout": 20}
OPTIMIZED, NON_OPTIMIZED, INACCESSIBLE, PERSISTENT_LOSS, CHANGE = 1, 2, 3, 4, 15


@pytest.fixture
def target():
    """A subsystem with two ports."""
    with EmulatedController("size=64MiB,namespaces=2,ana=2") as emulator:
        ports = [port for _, port in emulator.serve_tcp(*[("127.0.0.1", 0)] * 2, config=TcpConfig(nqn=NQN))]
        emulator.uri = "tcp:" + ",".join(f"127.0.0.1:{port}" for port in ports) + f"/{NQN}"
        yield emulator


def shown(controller) -> list[dict]:
    return controller.inspect()["paths"]


def sent(controller) -> list[int]:
    return [path["commands"] for path in shown(controller)]


async def state_is_known(controller, path: int, group: int, word: str) -> None:
    await eventually(lambda: shown(controller)[path]["ana"].get(str(group)) == word)


async def test_commands_take_turns_and_all_kinds_go_over_either_path(target):
    async with nvme_async.open(target.uri, **FAST) as controller:
        namespace = controller.namespaces[1]
        size = namespace.block_size
        for i in range(8):
            await namespace.write(i, bytes([i]) * size)
        before = sent(controller)
        for i in range(8):
            assert await namespace.read(i) == bytes([i]) * size
        assert [after - earlier for earlier, after in zip(before, sent(controller), strict=True)] == [4, 4]
        many = await namespace.read_many(array("Q", range(8)))
        assert bytes(many.data[::size]) == bytes(range(8))
        big = bytes(range(256)) * (3 << 13)
        await namespace.write(100, big)
        assert await namespace.read(100, len(big) // size) == big
        await namespace.flush()
        await namespace.write_zeroes(0, 2)
        await namespace.copy([(3, 1)], 1)
        assert await namespace.read(0, 2) == bytes(size) + b"\3" * size
        await namespace.settled()
        assert {path["state"] for path in shown(controller)} == {"ready"}
        assert len({path["cntlid"] for path in shown(controller)}) == 2
    await eventually(lambda: target.tcp_stats()["open_connections"] == 0)


async def test_the_path_with_the_shorter_queue_is_taken(target):
    async with nvme_async.open(target.uri, iopolicy="queue-depth", **FAST) as controller:
        namespace = controller.namespaces[1]
        for _ in range(10):
            await namespace.read(0)
        assert sent(controller)[1] == 0  # both are empty, so it is the first
        await asyncio.gather(*(namespace.read(i) for i in range(32)))
        assert sent(controller)[1] >= 8


async def test_optimized_paths_are_preferred_and_events_are_followed(target):
    target.tcp_ana_state(1, 1, NON_OPTIMIZED)
    async with nvme_async.open(target.uri, **FAST) as controller:
        one, two = controller.namespaces[1], controller.namespaces[2]
        for _ in range(6):
            await one.read(0)
        assert sent(controller) == [6, 0]
        for _ in range(6):
            await two.read(0)  # of the other group
        assert sent(controller) == [9, 3]
        target.tcp_ana_state(0, 1, INACCESSIBLE)
        await state_is_known(controller, 0, 1, "inaccessible")
        for _ in range(4):
            await one.read(0)
        assert sent(controller) == [9, 7]
        target.tcp_ana_state(0, 1, OPTIMIZED)
        await state_is_known(controller, 0, 1, "optimized")
        await one.read(0)
        assert sent(controller) == [10, 7]


@pytest.mark.parametrize("state", [INACCESSIBLE, PERSISTENT_LOSS, CHANGE])
async def test_a_state_that_changes_under_load_is_no_error(target, state):
    async with nvme_async.open(target.uri, **FAST) as controller:
        load = Load(controller.namespaces[1])
        task = asyncio.ensure_future(load.run(0.3))
        number = 0
        while not load.stop:
            target.tcp_ana_state(number % 2, 1, state)
            await asyncio.sleep(0.01)
            target.tcp_ana_state(number % 2, 1, OPTIMIZED)
            number += 1
        await task
        assert load.transient == 0
        await load.check(controller.namespaces[1])


async def test_io_waits_while_no_path_is_accessible_and_then_continues(target):
    async with nvme_async.open(target.uri, **FAST) as controller:
        for port in (0, 1):
            target.tcp_ana_state(port, 1, INACCESSIBLE)
        read = asyncio.ensure_future(controller.namespaces[1].read(0))
        await eventually(lambda: [path["ana"]["1"] for path in shown(controller)] == ["inaccessible"] * 2)
        assert not read.done()
        await controller.namespaces[2].read(0)
        target.tcp_ana_state(1, 1, OPTIMIZED)
        await asyncio.wait_for(read, 20)


async def test_io_without_an_accessible_path_ends_after_its_limit(target):
    for port in (0, 1):
        target.tcp_ana_state(port, 1, INACCESSIBLE)
    async with nvme_async.open(target.uri, ctrl_loss_tmo=0.2, **FAST) as controller:
        with pytest.raises(ControllerTimeout, match=r"inaccessible.*inaccessible"):
            await controller.namespaces[1].read(0)
        await controller.namespaces[2].read(0)


async def test_a_transition_that_takes_too_long_resets_the_path(target):
    async with nvme_async.open(target.uri, **FAST) as controller:
        for path in controller.transport.paths:
            path.anatt = 0.1
        target.tcp_ana_state(0, 1, CHANGE)
        await eventually(lambda: shown(controller)[0]["resets"] >= 1)
        assert shown(controller)[1]["resets"] == 0
        await controller.namespaces[1].read(0)


async def test_a_lost_path_under_load_costs_no_error_and_comes_back(target, record_property):
    async with nvme_async.open(target.uri, **FAST) as controller:
        load = Load(controller.namespaces[1])
        rounds = 0
        task = asyncio.ensure_future(load.run(0, lambda: rounds == 4))
        for number in range(4):
            target.tcp_port(number % 2, is_open=False)
            await eventually(lambda number=number: shown(controller)[number % 2]["state"] != "ready")
            done = sum(load.acknowledged.values())
            await eventually(lambda done=done: sum(load.acknowledged.values()) > done)  # by the other path
            target.tcp_port(number % 2, is_open=True)
            await eventually(lambda: {path["state"] for path in shown(controller)} == {"ready"})
            rounds += 1
        await task
        assert load.transient == 0
        record_property("longest_gap_s", round(load.gap, 4))
        assert controller.resets == 0
        before = sent(controller)
        await load.check(controller.namespaces[1])
        assert all(after > earlier for earlier, after in zip(before, sent(controller), strict=True))


async def test_batches_survive_a_lost_path(target):
    async with nvme_async.open(target.uri, **FAST) as controller:
        namespace = controller.namespaces[1]
        lbas = array("Q", range(512))
        data = b"".join(bytes([i & 0xFF]) * namespace.block_size for i in range(512))
        await namespace.write_many(lbas, data)
        for number in range(2):
            reading = [asyncio.ensure_future(namespace.read_many(lbas)) for _ in range(4)]
            await asyncio.sleep(0)
            target.tcp_port(number % 2, is_open=False)
            for many in await asyncio.gather(*reading):
                assert many.data == data
            target.tcp_port(number % 2, is_open=True)
            await eventually(lambda: {path["state"] for path in shown(controller)} == {"ready"})


async def test_io_waits_while_both_paths_are_lost(target):
    async with nvme_async.open(target.uri, **FAST) as controller:
        for port in (0, 1):
            target.tcp_port(port, is_open=False)
        await eventually(lambda: all(path["state"] != "ready" for path in shown(controller)))
        read = asyncio.ensure_future(controller.namespaces[1].read(0))
        await asyncio.sleep(0.05)
        assert not read.done()
        target.tcp_port(1, is_open=True)
        await asyncio.wait_for(read, 20)
        assert controller.state == "ready"


async def test_the_controller_fails_once_all_paths_were_lost_for_too_long(target):
    controller = await nvme_async.open(target.uri, ctrl_loss_tmo=0.3, **FAST)
    try:
        began = time.monotonic()
        for port in (0, 1):
            target.tcp_port(port, is_open=False)
        await eventually(lambda: all(path["state"] != "ready" for path in shown(controller)))
        with pytest.raises(ControllerGone, match=r"all paths were lost.*ctrl_loss_tmo"):
            await controller.namespaces[1].read(0)
        assert time.monotonic() - began >= 0.3
        assert controller.state == "failed"
    finally:
        await controller.close()
    await eventually(lambda: target.tcp_stats()["open_connections"] == 0)


async def test_a_path_that_is_silent_is_left_by_its_commands(target, monkeypatch):
    first, _, second = target.uri.removeprefix("tcp:127.0.0.1:").partition(f"/{NQN}")[0].partition(",127.0.0.1:")
    proxy = Proxy(("127.0.0.1", int(first)))
    options = {**FAST, "command_timeout": 1.0, "abort_timeout": 0.2}
    try:
        uri = f"tcp:127.0.0.1:{proxy.port},127.0.0.1:{second}/{NQN}"
        async with nvme_async.open(uri, **options) as controller:
            namespace = controller.namespaces[1]
            for _ in range(4):
                await namespace.read(0)
            monkeypatch.setattr(properties, "SECONDS", 0.3)
            proxy.silence()
            await asyncio.wait_for(asyncio.gather(*(namespace.read(i) for i in range(4))), 60)
            await eventually(lambda: {path["state"] for path in shown(controller)} == {"ready"})
    finally:
        proxy.close()


async def test_a_path_that_is_not_there_at_first_is_used_later(target):
    target.tcp_port(0, is_open=False)
    async with nvme_async.open(target.uri, **FAST) as controller:
        await controller.namespaces[1].read(0)
        assert shown(controller)[0]["state"] == "connecting"
        assert shown(controller)[0]["trouble"]
        target.tcp_port(0, is_open=True)
        await eventually(lambda: shown(controller)[0]["state"] == "ready")
        for _ in range(4):
            await controller.namespaces[1].read(0)
        assert sent(controller)[0] >= 2


async def test_a_write_of_a_lost_path_is_not_sent_there_again(target):
    """It was sent again on the other path, and newer ones may have overwritten it since."""
    async with nvme_async.open(target.uri, **FAST) as controller:
        namespace = controller.namespaces[1]
        size = namespace.block_size
        held = target.faults.add(queue="io", opcode=0x01, count=1, delay=FOREVER)
        before = sent(controller)
        first = asyncio.ensure_future(namespace.write(7, b"old".ljust(size)))
        await eventually(lambda: held.hits == 1)
        its = 0 if sent(controller)[0] > before[0] else 1
        target.tcp_port(its, is_open=False)
        await asyncio.wait_for(first, 20)
        assert shown(controller)[its]["failovers"] >= 1
        await namespace.write(7, b"new".ljust(size))
        target.tcp_port(its, is_open=True)
        await eventually(lambda: {path["state"] for path in shown(controller)} == {"ready"})
        for _ in range(4):
            assert (await namespace.read(7))[:3] == b"new"


async def test_a_manager_drives_it_and_shows_the_paths(target):
    async with nvme_async.Manager(workers=1, **FAST) as manager:
        namespace = await manager.namespace(target.uri, 1)
        before = manager.inspect()
        for _ in range(4):
            await namespace.read(0)
        target.tcp_port(1, is_open=False)
        for _ in range(4):
            await namespace.read(0)
        now = manager.inspect()
        metrics = manager.metrics().decode()
        for path in now["devices"][target.uri]["controller"]["paths"]:
            endpoint = path["uri"].partition(":")[2].partition("/")[0]
            assert any(endpoint in line for line in as_lines(before, now, 1.0))
            assert f'nvme_async_path_commands_total{{path="{path["uri"]}",uri="{target.uri}"}}' in metrics
        console = Console(width=400)
        with console.capture() as capture:
            console.print(as_tree(now))
        assert capture.get().count("path tcp:") == 2
        assert "group 1 optimized" in capture.get()
        assert namespace.retried == 0


async def test_a_reported_command_quiesce_time_is_waited_for(target):
    async with nvme_async.open(target.uri, keep_alive_tmo=0, **FAST) as controller:
        namespace = controller.namespaces[1]
        for _ in range(2):
            await namespace.read(0)
        for path in controller.transport.paths:
            path.controller.identify = attrs.evolve(path.controller.identify, cqt=300)
        held = target.faults.add(queue="io", opcode=0x01, count=1, delay=FOREVER)
        before = sent(controller)
        write = asyncio.ensure_future(namespace.write(7, bytes(namespace.block_size)))
        await eventually(lambda: held.hits == 1)
        began = time.monotonic()
        target.tcp_port(0 if sent(controller)[0] > before[0] else 1, is_open=False)
        await asyncio.wait_for(write, 20)
        assert time.monotonic() - began >= 0.3


async def test_a_command_that_must_not_be_sent_twice_ends_with_its_path(target):
    async with nvme_async.open(target.uri, **FAST) as controller:
        namespace = controller.namespaces[1]
        await namespace.write(0, b"a" * namespace.block_size)
        held = target.faults.add(queue="io", opcode=0x19, count=1, delay=FOREVER)
        before = sent(controller)
        copy = asyncio.ensure_future(namespace.copy([(0, 1)], 1))
        await eventually(lambda: held.hits == 1)
        target.tcp_port(0 if sent(controller)[0] > before[0] else 1, is_open=False)
        with pytest.raises(ControllerError):
            await asyncio.wait_for(copy, 20)
        assert await namespace.read(1) == bytes(namespace.block_size)


async def test_a_format_by_one_path_is_known_to_the_others(target):
    async with nvme_async.open(target.uri, **FAST) as controller:
        namespace = controller.namespaces[1]
        lbaf = next(i for i, one in enumerate(namespace.identify.lbafs) if one.ds == 9 and not one.ms)
        await controller.admin(commands.format_nvm(1, lbaf))
        assert namespace.block_size == 512
        for i in range(4):
            await namespace.write(i, bytes([i]) * 512)
        for i in range(4):
            assert await namespace.read(i) == bytes([i]) * 512


async def test_a_new_namespace_appears_and_is_reached_by_either_path(target):
    async with nvme_async.open(target.uri, **FAST) as controller:
        target.faults.add_namespace(3, "1MiB", block=4096)
        await eventually(lambda: 3 in controller.namespaces)
        namespace = controller.namespaces[3]
        await namespace.write(5, b"3" * 4096)
        before = sent(controller)
        await eventually(lambda: all(3 in path.controller.namespaces for path in controller.transport.paths))
        for _ in range(4):
            assert await namespace.read(5) == b"3" * 4096
        assert all(after > earlier for earlier, after in zip(before, sent(controller), strict=True))
        target.faults.remove_namespace(3)
        await eventually(lambda: 3 not in controller.namespaces)
        with pytest.raises(InvalidNamespace):
            await namespace.read(5)


async def test_addresses_of_different_subsystems_are_refused(target):
    with EmulatedController("size=64MiB,namespaces=2,ana=2,serial=OTHER") as other:
        port = other.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN))[0][1]
        first = target.uri.partition(",")[0]
        with pytest.raises(ConfigurationError, match="not a path to the same subsystem: serial"):
            await nvme_async.open(f"{first},127.0.0.1:{port}/{NQN}", **FAST)
    await eventually(lambda: target.tcp_stats()["open_connections"] == 0)


@pytest.mark.parametrize("rest", ["127.0.0.1:1,127.0.0.1:1/" + NQN, ",/" + NQN, "127.0.0.1:1,/" + NQN, "a,b"])
async def test_a_wrong_list_of_addresses_is_refused(rest):
    with pytest.raises(ConfigurationError):
        await nvme_async.open(f"tcp:{rest}")
