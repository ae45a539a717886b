"""The duration of each phase of a servicing is reported in the log, inspect() and Prometheus."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from driver_line import block, eventually, line, settle, socket_path

import nvme_async
from nvme_async.keepalive import phases, restore
from nvme_async.keepalive.phases import BUCKETS, NAMES, Histogram, Phases

AFTER_SAVE = {"suspend", "write"}
AFTER_RESTORE = {"attach", "build", "verify", "adopt", "drain"}


def phases_of(controller: nvme_async.Controller) -> dict[str, float]:
    found: dict[str, float] = controller.inspect()["keepalive"]["phases"]
    assert all(0 <= seconds < 10 for seconds in found.values()), found
    return found


async def test_phases_of_a_save_and_a_restore(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nvme_async")
    async with line() as drivers:
        await drivers.namespace.write(0, block(1))
        assert phases_of(drivers.driver) == {}
        before = phases.recorded()
        predecessor = drivers.driver
        with await predecessor.save() as bundle:
            assert phases_of(predecessor).keys() == AFTER_SAVE
            drivers.driver = await restore(bundle)
        await eventually(lambda: phases_of(drivers.driver).keys() == AFTER_RESTORE)
        assert "saved: suspend " in caplog.text
        await eventually(lambda: "taken over: attach " in caplog.text)

        def counted() -> dict[str, int]:
            return {
                phase: sum(counts) - sum(before.get((uri, phase), ([0], 0.0))[0])
                for (uri, phase), (counts, _) in phases.recorded().items()
                if uri == drivers.driver.uri
            }

        await eventually(lambda: counted() == dict.fromkeys(AFTER_SAVE | AFTER_RESTORE, 1))


async def test_phases_of_a_hand_over_include_the_predecessors(tmp_path: Path) -> None:
    async with line() as drivers:
        where = socket_path(tmp_path)
        async with drivers.driver.handover(where) as offer:
            drivers.driver = await nvme_async.take_over(where)
            await offer
        await eventually(lambda: phases_of(drivers.driver).keys() == AFTER_SAVE | AFTER_RESTORE | {"pass"})
        found = phases_of(drivers.driver)
        pause = drivers.driver.adopted.pause
        assert pause is not None
        assert found["pass"] + found["verify"] + found["adopt"] <= pause


async def test_the_drain_lasts_until_the_last_command(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nvme_async")
    async with line() as drivers:
        drivers.delay(opcode=2)
        task = asyncio.ensure_future(drivers.namespace.read(0))
        await drivers.outstanding(1)
        with await drivers.driver.save() as bundle:
            drivers.driver = await restore(bundle)
        assert "drain" not in phases_of(drivers.driver)
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.02)
        drivers.release()
        await drivers.driver.adopted.wait()
        await eventually(lambda: "drain" in phases_of(drivers.driver))
        assert phases_of(drivers.driver)["drain"] > 0.01
        assert "the predecessor's commands have ended" in caplog.text


async def test_the_first_io_after_a_drain_is_the_one_that_waited() -> None:
    async with line() as drivers:
        drivers.delay(opcode=2)
        task = asyncio.ensure_future(drivers.namespace.read(0))
        await drivers.outstanding(1)
        with await drivers.driver.save() as bundle:
            drivers.driver = await restore(bundle)
        await asyncio.gather(task, return_exceptions=True)
        waiting = asyncio.ensure_future(drivers.namespace.write(0, block(1)))
        await settle()
        assert "first I/O" not in phases_of(drivers.driver)
        drivers.release()
        await waiting  # and no other follows
        await eventually(lambda: "first I/O" in phases_of(drivers.driver))


async def test_the_first_io_changes_nothing_of_a_queue_pair_that_another_loop_has_taken() -> None:
    """Its watchdog is its own loop's."""
    async with line() as drivers:
        elsewhere = asyncio.new_event_loop()
        thread = threading.Thread(target=elsewhere.run_forever, name="another", daemon=True)
        thread.start()
        try:

            async def read() -> bytes:
                return bytes(await drivers.namespace.read(0))

            def there() -> Any:
                return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(read(), elsewhere))

            await drivers.namespace.read(0)
            await there()
            with await drivers.driver.save() as bundle:
                drivers.driver = await restore(bundle)
            await there()
            await drivers.namespace.read(0)
            await eventually(lambda: "first I/O" in phases_of(drivers.driver))
            queue = drivers.driver.queues.io[elsewhere]
            assert queue.hot.on_busy == queue._watch
        finally:
            elsewhere.call_soon_threadsafe(elsewhere.stop)
            await asyncio.to_thread(thread.join, 30)
            elsewhere.close()


async def test_completions_found_by_the_successor_are_logged_with_their_place(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nvme_async")
    async with line() as drivers:
        drivers.delay(opcode=2)
        tasks = [asyncio.ensure_future(drivers.namespace.read(lba)) for lba in range(12)]
        await drivers.outstanding(12)
        with await drivers.driver.save() as bundle:
            await asyncio.gather(*tasks, return_exceptions=True)
            drivers.release()
            await eventually(lambda: not drivers.faults.outstanding())
            drivers.driver = await restore(bundle)
            await drivers.driver.adopted.wait()
        lines = [record.getMessage() for record in caplog.records if "no driver was running" in record.getMessage()]
        assert len(lines) == 8
        assert all("queue 1: completion at head " in text and "status 0x0 arrived" in text for text in lines)
        assert "queue 1: 4 more" in caplog.text


def test_histograms() -> None:
    histogram = Histogram()
    for seconds in (0.0, 1e-5, 1.1e-5, 0.003, 1e6):
        histogram.add(seconds)
    assert sum(histogram.counts) == 5
    assert histogram.counts[0] == 2
    assert histogram.counts[1] == 1
    assert histogram.counts[BUCKETS.index(0.005)] == 1
    assert histogram.counts[-1] == 1
    taken = Phases("x:")
    for name in reversed(NAMES):
        taken.add(name, 0.001)
    assert str(taken) == ", ".join(f"{name} 1.000 ms" for name in NAMES)


async def test_prometheus_exports_the_phases() -> None:
    client = pytest.importorskip("prometheus_client")
    from nvme_async.manager.metrics import ManagerCollector

    class Manager:
        def inspect(self) -> dict[str, Any]:
            return {"devices": {}, "workers": []}

    async with line() as drivers:
        with await drivers.driver.save() as bundle:
            drivers.driver = await restore(bundle)
        registry = client.CollectorRegistry()
        registry.register(ManagerCollector(Manager()))
        labels = {"device": drivers.driver.uri, "phase": "verify"}
        await eventually(lambda: registry.get_sample_value("nvme_async_servicing_seconds_count", labels))
        assert registry.get_sample_value("nvme_async_servicing_seconds_count", labels) == 1
        assert registry.get_sample_value("nvme_async_servicing_seconds_bucket", labels | {"le": "+Inf"}) == 1
        assert (registry.get_sample_value("nvme_async_servicing_seconds_sum", labels) or 0) > 0
