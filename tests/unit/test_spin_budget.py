"""For how long batches spin, and how they fill the queue of an idle controller (waiting.h,
batch.h).
"""

import asyncio
import struct

import probing
import pytest

LIMIT = 20_000
PROBES = 64  # one wait in so many is probed where no spin has sufficed


@pytest.fixture(scope="module")
def spin_bounds():
    return probing.load().spin_bounds


def test_a_few_long_waits_among_short_ones_do_not_end_the_spinning(spin_bounds):
    waits = [5_000] * 50 + [80_000, 80_000] + [5_000] * 50
    bounds = spin_bounds(LIMIT, waits)
    assert all(bound >= 5_000 for bound in bounds[10:])


def test_where_no_spin_suffices_it_is_only_probed(spin_bounds):
    bounds = spin_bounds(LIMIT, [80_000] * 10_000)
    spun = sum(1 for bound in bounds if bound)
    assert spun < 10_000 / PROBES + 20
    assert bounds[1000:].count(LIMIT) == pytest.approx(9_000 / PROBES, abs=1)


def test_one_probe_that_finds_something_is_enough(spin_bounds):
    bounds = spin_bounds(LIMIT, [80_000] * 100 + [5_000] * 200)
    first = next(i for i in range(100, 300) if bounds[i])
    assert first < 100 + PROBES
    assert all(bounds[first:])


def test_a_lucky_probe_costs_one_more_spin(spin_bounds):
    waits = [80_000] * 5_000
    before = spin_bounds(LIMIT, waits)
    lucky = next(i for i in range(1_000, 5_000) if before[i])
    waits[lucky] = 5_000
    after = spin_bounds(LIMIT, waits)
    assert sum(map(bool, after)) <= sum(map(bool, before)) + 2


async def doorbells_of_a_batch(ring, depth):
    """For the first `depth` commands, which the controller answers only once the batch sleeps."""
    before = ring.qp.inspect()["sq"]["doorbells"]
    batch = ring.qp.batch(0, 1, struct.pack(f"<{depth}Q", *range(depth)), 1, None, 0, to_host=False, depth=depth)

    async def wait():
        return await batch

    task = asyncio.create_task(wait())
    for _ in range(3):
        await asyncio.sleep(0)
    found = ring.fetch()
    assert len(found) == depth
    rung = ring.qp.inspect()["sq"]["doorbells"] - before
    for sqe in found:
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    await task
    return rung


@pytest.mark.parametrize("ring", [{"mode": "adaptive", "entries": 64}], indirect=True)
async def test_an_idle_controller_gets_a_batch_in_parts_while_it_is_waited_for(ring):
    ring.qp.spin_ns = 1000
    rung = [await doorbells_of_a_batch(ring, 32) for _ in range(20)]
    assert rung[0] == 4
    assert rung[-1] == 1, "it is not waited for any more"
    assert sorted(rung, reverse=True) == rung
    assert ring.qp.inspect()["lull_ns"] > 1000


@pytest.mark.parametrize("ring", [{"mode": "interrupt", "entries": 64}], indirect=True)
async def test_in_interrupt_mode_a_batch_is_rung_for_once(ring):
    ring.qp.spin_ns = 1000
    assert [await doorbells_of_a_batch(ring, 32) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("ring", [{"mode": "adaptive", "entries": 64}], indirect=True)
async def test_a_short_batch_is_rung_for_once(ring):
    ring.qp.spin_ns = 1000
    assert await doorbells_of_a_batch(ring, 3) == 1
