"""How awaited commands wait over NVMe/TCP, where a poll is a system call and the socket's
readability is the interrupt.
"""

from __future__ import annotations

import asyncio
import select

import pytest

import nvme_async
from nvme_async.driver.queues.loop_queue import DEAD_VECTOR
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig

NQN = "nqn.2024-01.io.example:test"
WAITERS = 32


@pytest.fixture
def target():
    with EmulatedController("size=64MiB") as emulator:
        port = emulator.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN))[0][1]
        emulator.uri = f"tcp:127.0.0.1:{port}/{NQN}"
        yield emulator


def queue_here(controller):
    return controller.transport.queues.io[asyncio.get_running_loop()]


async def test_waiters_of_one_connection_share_its_polls(target):
    async with nvme_async.open(target.uri, spin_us=0) as controller:
        namespace = controller.namespaces[1]
        await namespace.read(0)
        link = queue_here(controller).link
        target.faults.add(queue="io", opcode=2, delay=0.5)
        before = link.inspect()
        reads = [asyncio.create_task(namespace.read(lba)) for lba in range(WAITERS)]
        for _ in range(20):
            await asyncio.sleep(0)
        after = link.inspect()
        # Each polled when it was sent, and in each iteration that it waited for: over 200 times.
        assert after["receives"] - before["receives"] < 4 * WAITERS
        assert after["receives_in_vain"] > before["receives_in_vain"]
        assert len(await asyncio.gather(*reads)) == WAITERS


async def test_a_completion_that_an_early_poll_finds_in_the_socket_is_no_missed_interrupt(target):
    async with nvme_async.open(target.uri, mode="interrupt") as controller:
        namespace = controller.namespaces[1]
        await namespace.read(0)
        queue = queue_here(controller)
        target.faults.add(queue="io", opcode=2, delay=0.005)
        found = 0
        while found < 2 * DEAD_VECTOR:
            read = asyncio.create_task(namespace.read(0))
            await asyncio.sleep(0)  # it is sent, and the loop has taken no events since
            if queue.hot.n_outstanding:
                # As in a loop that runs its timers before it takes events.
                assert select.select([queue._socket], [], [], 30)[0]
                queue._waits._poll_early()
                found += 1
            await read
        for _ in range(3):
            await asyncio.sleep(0)
        state = queue.hot.inspect()
        assert state["mode"] == "interrupt"
        assert state["missed_interrupts"] == 0


async def test_the_sockets_readability_counts_as_an_interrupt(target):
    async with nvme_async.open(target.uri, mode="interrupt") as controller:
        await controller.namespaces[1].read(0)
        queue = queue_here(controller)
        target.faults.add(queue="io", opcode=2, delay=0.005)
        async with asyncio.timeout(30):
            while not queue.hot.n_interrupts:
                await controller.namespaces[1].read(0)
