"""Naps before completions that are expected (mode="hybrid"), on a drive that takes its time."""

import pytest
from driver_line import READ, Way, descriptors, line

import nvme_async

SLOW = "emulated:size=1MiB,latency=2ms,reactor=own"


async def until_it_naps(controller):
    """Reads one after the other. The second one naps, unless this process had no processor then."""
    namespace = controller.namespaces[1]
    for number in range(500):
        assert len(await namespace.read(number % 8)) == namespace.block_size
        if controller.inspect()["io_queues"][0]["naps"]:
            return
    raise AssertionError("none of 500 reads was taken by a nap")


async def test_a_nap_ends_a_lone_read_and_the_timer_goes_with_the_queue_pair():
    async with nvme_async.open("emulated:size=1MiB"):
        pass  # what is made once stays
    before = descriptors()
    async with nvme_async.open(SLOW, mode="hybrid") as controller:
        await until_it_naps(controller)
        assert controller.inspect()["io_queues"][0]["wake_ns"] > 0
    assert descriptors() == before


async def test_adaptive_mode_measures_what_waking_up_takes():
    async with nvme_async.open(SLOW) as controller:
        await until_it_naps(controller)
        assert controller.inspect()["io_queues"][0]["wake_ns"] > 0


@pytest.mark.parametrize("way", ["save", "handover"])
async def test_a_successor_naps_and_nothing_of_its_predecessors_timer_is_left(way: Way):
    before = descriptors()
    async with line(mode="hybrid") as drivers:
        drivers.delay(0.002, opcode=READ)
        await until_it_naps(drivers.driver)
        drivers.release()
        drivers.delay(opcode=READ)
        (reading,) = drivers.start(drivers.namespace.read(0))
        await drivers.outstanding(1)  # perhaps with a timer that ends after the hand-over
        await drivers.succeed(way)
        drivers.release()
        drivers.delay(0.002, opcode=READ)
        await until_it_naps(drivers.driver)
        with pytest.raises(nvme_async.HandedOver):
            await reading
    assert descriptors() == before
