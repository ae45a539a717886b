"""When the submission doorbell is rung (ringing.h), against a controller in virtual time."""

import pytest
from virtual_time import Device, run

# What malloc-backed targets do: take all commands that were rung, work, post all completions.
TURNS = Device(650, in_turns=True)
HOST_LIMIT = 1000 / 700  # commands a microsecond, at 700 ns each


def as_before(qp):
    qp.ring_at = 64


@pytest.mark.parametrize("mode", ["poll", "adaptive"])
@pytest.mark.parametrize(("depth", "share"), [(8, 0.7), (32, 0.85)])
async def test_host_and_controller_work_at_the_same_time(depth, share, mode):
    fixed = await run(TURNS, depth=depth, mode=mode, prepare=as_before)
    learnt = await run(TURNS, depth=depth, mode=mode)
    assert fixed.rate < 0.6 * HOST_LIMIT, "they take turns"
    assert learnt.rate > share * HOST_LIMIT
    assert learnt.doorbells < 0.4


@pytest.mark.parametrize("mode", ["poll", "adaptive", "interrupt"])
@pytest.mark.parametrize(
    "device",
    [Device(1, 80_000), Device(2_500, in_turns=True), Device(10_000)],
    ids=["parallel", "in turns", "one after the other"],
)
@pytest.mark.parametrize("depth", [8, 32, 128])
async def test_a_slow_controller_costs_no_more_doorbells(device, depth, mode):
    fixed = await run(device, depth=depth, mode=mode, commands=800, prepare=as_before)
    learnt = await run(device, depth=depth, mode=mode, commands=800)
    assert learnt.doorbells <= 1.2 * fixed.doorbells
    assert learnt.rate >= 0.98 * fixed.rate


@pytest.mark.parametrize("depth", [8, 32, 128])
async def test_a_controller_that_is_never_waited_for_loses_nothing(depth):
    fixed = await run(Device(30, 300), depth=depth, mode="adaptive", prepare=as_before)
    learnt = await run(Device(30, 300), depth=depth, mode="adaptive")
    assert learnt.rate >= 0.99 * fixed.rate


async def test_a_value_that_is_set_stays():
    result = await run(TURNS, depth=32, mode="poll", prepare=as_before)
    assert set(result.trace) == {64}


async def test_it_tries_again_whether_fewer_doorbells_do():
    result = await run(TURNS, depth=32, mode="adaptive", commands=10_000)
    learnt = result.trace[len(result.trace) // 4 :]
    assert min(learnt) == 16
    assert max(learnt) > 16
    assert learnt.count(16) > len(learnt) / 2
