"""A queue pair with a controller in virtual time: what host and controller do costs what a test
says, not what this machine takes. So rates and counts are the same in each run.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from ring_controller import RingController, flush

EPOCH = 1_000_000  # on the queue pair's clock, when a run begins


@dataclass(frozen=True)
class Device:
    """In nanoseconds. command: work for one of them, one after the other. latency: more, for all of
    them at once. in_turns: takes all that was rung, and posts all completions when it has done
    them, as controllers do that are polled loops themselves.
    """

    command: int
    latency: int = 0
    in_turns: bool = False


@dataclass
class Host:
    """In nanoseconds: sending a command and taking its result; a poll in vain by one coroutine; an
    iteration of the event loop without any; from an interrupt to the first task.
    """

    post: int = 700
    poll: int = 200
    iteration: int = 1000
    wake_up: int = 5000


@dataclass
class Result:
    """of a run: thousands of commands per millisecond, doorbells and interrupts per command."""

    rate: float
    doorbells: float
    interrupts: float
    ring_at: int
    trace: list[int] = field(default_factory=list)


class VirtualController(RingController):
    def __init__(self, loop, device: Device, **options) -> None:
        super().__init__(loop, entries=256, **options)
        self.device = device
        self.now = self.busy_until = 0
        self.n = 0
        self.working: list[tuple[int, int, int]] = []  # (when complete, order, command identifier)
        self.posted = False  # since the last iteration
        self.interrupt = False  # is due, should the host sleep
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.qp.set_event_fd(self.event_fd)
        self.qp.spin_ns = 0  # spins are measured in real time
        self.qp.clock_ns = EPOCH

    def take(self, at: int) -> None:
        """What was rung begins to be worked on."""
        begun = max(at, self.busy_until)
        batch = []
        for sqe in self.fetch():
            begun += self.device.command
            self.n += 1
            batch.append((begun + self.device.latency, self.n, self.cid(sqe)))
        if batch:
            self.busy_until = begun
        for when, order, cid in batch:
            heapq.heappush(self.working, (batch[-1][0] if self.device.in_turns else when, order, cid))

    def spend(self, ns: int) -> None:
        """Virtual time goes on."""
        end = self.now + ns
        at = self.now
        while True:
            if not self.device.in_turns or self.busy_until <= at:
                self.take(at)
            following = [when for when, _, _ in self.working[:1]]
            if self.device.in_turns and self.busy_until > at:
                following.append(self.busy_until)
            if not following or min(following) > end:
                break
            at = max(at, min(following))
            while self.working and self.working[0][0] <= at:
                self.post(heapq.heappop(self.working)[2])
                self.posted = self.interrupt = True
        self.now = end
        self.qp.clock_ns = EPOCH + end

    def close(self) -> None:
        os.close(self.event_fd)
        super().close()


async def run(
    device: Device,
    *,
    depth: int,
    mode: str,
    commands: int = 2000,
    prepare: Callable = lambda qp: None,
    host: Host | None = None,
) -> Result:
    """`depth` coroutines that send one command after another."""
    host = host or Host()
    loop = asyncio.get_running_loop()
    ring = VirtualController(loop, device, mode=mode)
    prepare(ring.qp)
    left, sent, over, idle, interrupts = commands, 0, False, 0, 0
    out = 0
    trace: list[int] = []

    def iteration() -> None:
        """Before each iteration of the event loop: the coroutines that wait poll in turn, until one
        finds something.
        """
        nonlocal sent, idle, interrupts
        if over:
            return
        idle = 0 if sent else idle + 1
        if sent and mode != "interrupt":
            ring.interrupt = False  # the host has polled
        if idle <= 8:
            for _ in range(out - sent):
                if ring.posted:
                    break
                ring.spend(host.poll)
        ring.spend(host.iteration // 4)
        if idle > 8 and mode == "poll":
            ring.spend(host.iteration)
        elif idle > 8:  # all of them sleep
            if ring.working and not ring.interrupt:
                ring.spend(max(0, ring.working[0][0] - ring.now))
            if ring.interrupt:
                ring.interrupt = False
                ring.spend(host.wake_up)
                interrupts += 1
                os.eventfd_write(ring.event_fd, 1)
                ring.qp.on_interrupt()
        sent = 0
        ring.posted = False
        trace.append(ring.qp.ring_at)
        loop.call_soon(iteration)

    async def worker() -> None:
        nonlocal left, sent, out
        while left > 0:
            left -= 1
            sent += 1
            ring.spend(host.post)
            out += 1
            await ring.qp.request(flush())
            out -= 1

    loop.call_soon(iteration)
    try:
        await asyncio.gather(*(worker() for _ in range(depth)))
    finally:
        over = True
    doorbells = ring.qp.inspect()["sq"]["doorbells"]
    result = Result(commands / ring.now * 1000, doorbells / commands, interrupts / commands, ring.qp.ring_at, trace)
    await asyncio.sleep(0)
    ring.close()
    return result
