"""Lone commands that are slept for: when a nap ends, and what is learnt from it (napping.h), in
virtual time; and the timer of a queue pair.
"""

import asyncio
import os
import select
import subprocess
from dataclasses import dataclass

import pytest
from native_build import COMPILER, ROOT, program
from ring_controller import flush, started

COMMANDS = 10_000
PROBES = 64


@dataclass(frozen=True)
class Result:
    """Of 10 000 commands, in nanoseconds."""

    late: int
    naps: int
    polled: int
    in_vain: int
    expected: int
    wake_up: int
    spin: int


@pytest.fixture(scope="module")
def run():
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    check = program([ROOT / "tests" / "native" / "hotpath" / "check_naps.c"])

    def run(mode, device, *, jitter=0, wake_up=20_000, delayed=0):
        arguments = [check, mode, *map(str, (device, jitter, wake_up, delayed))]
        return Result(*map(int, subprocess.run(arguments, capture_output=True, check=True, timeout=60).stdout.split()))

    return run


@pytest.mark.parametrize("delayed", [0, 50, 200], ids=lambda n: f"{n} of 1000 delayed")
@pytest.mark.parametrize("wake_up", [4_000, 20_000])
def test_a_steady_command_is_seen_at_once_and_polled_for_briefly(run, wake_up, delayed):
    result = run("hybrid", 80_000, wake_up=wake_up, delayed=delayed)
    assert result.late == 0
    assert result.naps > 0.99 * COMMANDS
    assert result.polled < 4_000 * COMMANDS
    assert result.in_vain < COMMANDS / 100


def test_a_command_whose_time_varies_is_polled_for_longer(run):
    result = run("hybrid", 80_000, jitter=20_000)
    assert result.late == 0
    assert result.polled < 12_000 * COMMANDS
    assert result.in_vain < COMMANDS / 20


def test_what_varies_by_more_than_a_poll_is_left_to_the_interrupt(run):
    result = run("hybrid", 2_000_000, jitter=500_000)
    assert result.naps < 2 * COMMANDS / PROBES
    assert result.polled == 0


@pytest.mark.parametrize("device", [20_000, 80_000, 300_000])
def test_adaptive_mode_naps_to_measure_only(run, device):
    result = run("adaptive", device)
    assert result.naps <= COMMANDS / PROBES + 1
    assert result.polled == 0
    assert 20_000 <= result.wake_up <= 25_000
    assert result.expected == pytest.approx(device, rel=0.1)


@pytest.mark.parametrize(("wake_up", "spin"), [(4_000, 20_000), (20_000, 43_000)])
def test_the_longest_spin_follows_from_what_waking_up_takes(run, wake_up, spin):
    assert run("adaptive", 80_000, wake_up=wake_up).spin == pytest.approx(spin, rel=0.05)


def test_busy_processors_are_not_taken_for_slow_wake_ups(run):
    assert run("adaptive", 80_000, delayed=300).spin <= 50_000


# -- the timer -------------------------------------------------------------------------------------


class Timed:
    """A queue pair with its sleeps in virtual time. Nothing reads the timer but wait()."""

    def __init__(self, ring) -> None:
        self.ring, self.qp = ring, ring.qp
        self.fds: list[int] = []
        self.qp.on_timer_made = self.fds.append
        self.qp.spin_ns = 0
        self.qp.clock_ns = 1_000_000
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.qp.set_event_fd(self.event_fd)

    async def asleep(self) -> tuple[asyncio.Task[object], int]:
        """A command that is slept for, and its id."""
        (task,) = await started(self.qp.request(flush()))
        for _ in range(20):  # it may wait for a few iterations first
            await asyncio.sleep(0)
        (sqe,) = self.ring.fetch()
        return task, self.ring.cid(sqe)

    async def interrupt(self, task: asyncio.Task[object], cid: int, ns: int = 100_000) -> None:
        self.qp.clock_ns += ns
        self.ring.post(cid)
        os.eventfd_write(self.event_fd, 1)
        self.qp.on_interrupt()
        await asyncio.wait_for(task, 10)

    def end_nap(self) -> None:
        """Waits for the timer, and has it taken."""
        poll = select.poll()
        poll.register(self.fds[-1], select.POLLIN)
        assert poll.poll(10_000), "no nap has begun"
        self.qp.on_timer()

    @property
    def naps(self) -> int:
        return self.qp.inspect()["naps"]


@pytest.fixture
async def timed(ring):
    timed = Timed(ring)
    await timed.interrupt(*await timed.asleep())  # so that it knows how long a command takes
    assert not timed.fds
    yield timed
    os.close(timed.event_fd)


HYBRID_AND_ADAPTIVE = [{"mode": "hybrid"}, {"mode": "adaptive"}]


@pytest.mark.parametrize("ring", HYBRID_AND_ADAPTIVE, indirect=True, ids=lambda options: options["mode"])
async def test_the_end_of_a_nap_takes_the_completion_without_an_interrupt(timed):
    task, cid = await timed.asleep()
    timed.ring.post(cid)
    before = timed.qp.n_interrupts
    timed.end_nap()
    await asyncio.wait_for(task, 10)
    assert (timed.naps, timed.qp.n_interrupts) == (1, before)
    assert timed.qp.inspect()["wake_ns"] > 0


@pytest.mark.parametrize("ring", [{"mode": "hybrid"}], indirect=True)
async def test_a_command_that_is_not_complete_after_its_nap_is_slept_for_again(timed):
    task, cid = await timed.asleep()
    timed.end_nap()
    await asyncio.sleep(0)
    assert timed.naps == 1
    assert not task.done()
    await timed.interrupt(task, cid)


@pytest.mark.parametrize("ring", [{"mode": "hybrid"}], indirect=True)
async def test_an_interrupt_that_comes_first_ends_the_nap(timed):
    await timed.interrupt(*await timed.asleep())
    timed.end_nap()
    assert timed.naps == 0


@pytest.mark.parametrize("ring", [{"mode": "hybrid"}], indirect=True)
async def test_of_two_commands_none_naps(timed):
    tasks = await started(timed.qp.request(flush()), timed.qp.request(flush()))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not timed.fds
    for sqe in timed.ring.fetch():
        timed.ring.post(timed.ring.cid(sqe))
    timed.qp.more()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)


@pytest.mark.parametrize("ring", [{"mode": "hybrid"}], indirect=True)
async def test_each_command_of_a_steady_controller_naps(timed):
    task, cid = await timed.asleep()
    timed.ring.post(cid)
    timed.end_nap()  # a probe: waking up takes no virtual time
    await asyncio.wait_for(task, 10)
    for _ in range(40):
        await timed.interrupt(*await timed.asleep())
    before = timed.naps
    for number in range(1, 4):
        task, cid = await timed.asleep()
        timed.qp.clock_ns += 100_000
        timed.ring.post(cid)
        timed.end_nap()
        await asyncio.wait_for(task, 10)
        assert timed.naps == before + number


@pytest.mark.parametrize("ring", [{"mode": "interrupt"}], indirect=True)
async def test_interrupt_mode_has_no_timer(timed):
    for _ in range(3):
        await timed.interrupt(*await timed.asleep())
    assert not timed.fds


@pytest.mark.parametrize("ring", [{"mode": "hybrid"}], indirect=True)
async def test_the_timer_is_closed_and_made_again(timed):
    await timed.interrupt(*await timed.asleep())
    timed.qp.close_timer()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(timed.fds[0])
    await timed.interrupt(*await timed.asleep())
    assert len(timed.fds) == 2
    timed.ring.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(timed.fds[1])
