"""The link to the kernel on pipes, which decide when a read ends: memory is held until then,
whatever else happens.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct

import pytest

from nvme_async.driver.completions import error_from
from nvme_async.driver.kernel import admin
from nvme_async.driver.kernel.address import is_controller as is_a_controller
from nvme_async.driver.kernel.address import parse_address
from nvme_async.driver.kernel.engine import why_no_ring
from nvme_async.driver.kernel.nodes import Node
from nvme_async.errors import CommandAborted, CommandError, LbaOutOfRange, WriteFault
from nvme_async.native import _hotpath, _kernel, _placement
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Cns, Feature

READ, WRITE, FLUSH, COMPARE = 2, 1, 0, 5
BLOCK = 512


class Piped:
    """A queue pair over a link whose namespace 1 is a pipe's end to read from, and 2 one to
    write to.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, entries: int = 9) -> None:
        self.reads, self.feed = os.pipe()
        self.drain, self.writes = os.pipe()
        self.link = _kernel.Link()
        self.hot = _hotpath.QueuePair(
            _placement.HostMemory(_hotpath.queue_memory(entries, entries - 1, 1 << 20)),
            qid=1,
            entries=entries,
            n_trackers=entries - 1,
            max_transfer=1 << 20,
            address_map=_placement.AddressMap(),
            bounce=_placement.BounceCache(lambda nbytes, tag: None),
            create_future=loop.create_future,
            call_soon=loop.call_soon,
            command_error=error_from,
            on_stray=lambda *stray: None,
            ready=None,
        )
        self.hot.set_transport(self.link)
        self.link.start()
        self.link.use_ring(entries)
        for nsid, fd in ((1, self.reads), (2, self.writes)):
            self.link.set_target(nsid, fd, kind="file", block_size=BLOCK, blocks=1 << 20, writable=nsid == 2)
        self.hot.set_event_fd(self.link.event_fd)
        self.hot.bind(loop, False)
        self.loop = loop
        loop.add_reader(self.link.event_fd, self.hot.on_interrupt)

    def request(self, opcode: int, blocks: int, buffer=None, *, nsid: int = 1, lba: int = 0):
        sqe = struct.pack("<BBHI32xQI", opcode, 0, 0, nsid, lba, blocks - 1).ljust(64, b"\0")
        return self.hot.request(
            sqe,
            buffer,
            read_nbytes=blocks * BLOCK if opcode == READ and buffer is None else -1,
            to_host=opcode == READ,
            tag=0,
            internal=False,
            driver=False,
            geometry=None,
        )

    def close(self) -> None:
        self.loop.remove_reader(self.link.event_fd)
        self.link.cancel_all()
        for _ in range(1000):
            if not self.link.in_flight():
                break
        self.hot.close()
        self.link.close()
        for fd in (self.reads, self.feed, self.drain, self.writes):
            try:
                os.close(fd)
            except OSError:
                pass


@pytest.fixture
async def piped():
    if reason := why_no_ring():
        pytest.skip(reason)
    try:
        one = Piped(asyncio.get_running_loop())
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        pytest.skip("rings of tests before this one still count as locked memory")
    yield one
    one.close()


async def _await(awaitable):
    return await awaitable


async def started(awaitable) -> asyncio.Task:
    task = asyncio.ensure_future(_await(awaitable))
    await asyncio.sleep(0.002)
    return task


async def test_a_read_in_pieces_is_one_read(piped):
    data = os.urandom(4 * BLOCK)
    buffer = bytearray(4 * BLOCK)
    task = await started(piped.request(READ, 4, buffer))
    for number, (at, nbytes) in enumerate(((0, 1), (1, 700), (701, 4 * BLOCK - 701)), 1):
        assert not task.done()
        os.write(piped.feed, data[at : at + nbytes])
        while number < 3 and piped.link.inspect()["short_transfers"] < number:
            await asyncio.sleep(0.002)
    await task
    assert buffer == data
    assert piped.link.inspect()["short_transfers"] == 2


async def test_an_end_in_the_middle_is_an_error(piped):
    task = await started(piped.request(READ, 4))
    os.write(piped.feed, b"x" * 600)
    os.close(piped.feed)
    with pytest.raises(LbaOutOfRange):
        await task


async def test_memory_is_the_kernels_until_its_completion(piped):
    buffer = bytearray(b"\xee" * BLOCK)
    task = await started(piped.request(READ, 1, buffer))
    assert piped.link.in_flight() == 1
    with pytest.raises(BufferError):
        buffer.clear()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The kernel gives a read of a pipe up when it is asked to; only its completion frees the
    # memory.
    while piped.link.in_flight():
        await asyncio.sleep(0.001)
    piped.hot.reap()
    buffer.clear()
    assert piped.link.inspect()["cancels"] == 1
    os.write(piped.feed, b"y" * BLOCK)
    again = bytearray(BLOCK)
    await piped.request(READ, 1, again)
    assert again == b"y" * BLOCK, "the cancelled read took what was meant for the next"


async def test_what_is_given_up_for_a_reset_is_sent_again(piped):
    task = await started(piped.request(READ, 1))
    piped.hot.silence(True)
    piped.link.cancel_all()
    while piped.link.in_flight():
        await asyncio.sleep(0.001)
    assert not task.done()
    piped.hot.restart(frozenset({READ}), OSError("reset"), 3)
    piped.hot.silence(False)
    while piped.link.in_flight() != 1:
        await asyncio.sleep(0.001)
    os.write(piped.feed, b"z" * BLOCK)
    assert (await task)[2] == b"z" * BLOCK


async def test_a_full_queue_waits_and_all_are_answered(piped):
    tasks = [asyncio.ensure_future(_await(piped.request(READ, 1))) for _ in range(30)]
    await asyncio.sleep(0.002)
    assert piped.link.in_flight() == 8
    for i in range(30):
        os.write(piped.feed, bytes([i]) * BLOCK)
        await asyncio.sleep(0.001)
    answers = [(await task)[2] for task in tasks]
    assert b"".join(sorted(answers)) == b"".join(bytes([i]) * BLOCK for i in range(30))


async def test_a_pipe_without_reader_is_a_write_fault_or_internal_error(piped):
    os.close(piped.drain)
    with pytest.raises(CommandError) as caught:
        await piped.request(WRITE, 1, b"w" * BLOCK, nsid=2)
    assert not isinstance(caught.value, (WriteFault, CommandAborted))


@pytest.mark.parametrize(
    ("opcode", "nsid", "nbytes", "status"),
    [
        (READ, 3, BLOCK, 0x0B),
        (WRITE, 1, BLOCK, 0x20),
        (0x08, 1, 0, 0x20),
        (WRITE, 2, 2 * BLOCK, 0x0F),
        (COMPARE, 1, 2 * BLOCK, 0x0F),
        (0x55, 2, 0, 0x01),
    ],
)
async def test_what_names_something_else_ends_without_the_kernel(piped, opcode, nsid, nbytes, status):
    with pytest.raises(CommandError) as caught:
        await piped.request(opcode, 1, b"d" * nbytes if nbytes and opcode != READ else None, nsid=nsid)
    assert caught.value.status & 0x7FF == status


async def test_addresses_that_overflow_are_out_of_range(piped):
    for lba in (1 << 20, (1 << 20) - 1, (1 << 55) + 5, (1 << 64) - 1):
        with pytest.raises(LbaOutOfRange):
            await piped.request(READ, 2, lba=lba)
    assert piped.link.inspect()["ring_commands"] == 0


def test_limits_of_targets():
    with pytest.raises(ValueError, match="not powers of two"):
        _kernel.Link().set_target(1, 0, kind="file", block_size=1000, blocks=1, writable=True)
    link = _kernel.Link()
    for nsid in range(1, 257):
        link.set_target(nsid, 0, kind="file", block_size=512, blocks=1, writable=False)
    with pytest.raises(OSError, match="No space"):
        link.set_target(257, 0, kind="file", block_size=512, blocks=1, writable=False)
    with pytest.raises(OSError, match="Invalid"):
        _kernel.Link().start()  # no queue pair has it


@pytest.mark.parametrize(
    ("rest", "path", "is_controller"),
    [
        ("nvme0", "/dev/nvme0", True),
        ("/dev/nvme12", "/dev/nvme12", True),
        ("ng0n1", "/dev/ng0n1", False),
        ("/dev/ng12n345", "/dev/ng12n345", False),
        ("/dev/nvme0n1", "/dev/nvme0n1", False),
        ("nvme1n2p3", "/dev/nvme1n2p3", False),
    ],
)
def test_which_nodes_are_controllers(rest, path, is_controller):
    address = parse_address("kernel", rest)
    assert (address.node(), is_a_controller(path)) == (path, is_controller)


def test_a_namespace_node_shows_its_namespace_alone(monkeypatch):
    """Answers of the kernel's controller don't list namespaces that were not opened."""
    asked = []

    def passthrough(fd, sqe, buffer, *, to_host, timeout_ms):
        asked.append((sqe[0], sqe[40], int.from_bytes(sqe[4:8], "little")))
        if sqe[40] == 1:
            buffer[80:84] = (0x10400).to_bytes(4, "little")
        if sqe[40] == 2:
            buffer[:12] = struct.pack("<3I", 1, 2, 5)
        return 0, 0, 0

    monkeypatch.setattr(admin._kernel, "passthrough", passthrough, raising=False)
    passed = admin.Passed(Node(-1, "/dev/nvme4", "controller"), {2: Node(-1, "/dev/ng4n2", "passthrough")}, int, 1.0)

    def answer(command):
        return passed.run(command, command.pack(), None, 4096)

    assert passed.version().to_int() == 0x10400
    assert answer(commands.identify(Cns.ACTIVE_NAMESPACES, 0))[3] == struct.pack("<I", 2).ljust(4096, b"\0")
    assert answer(commands.identify(Cns.NAMESPACE, 5)) == (0, 0, 0, bytes(4096))
    assert (6, 0, 5) not in asked
    answer(commands.identify(Cns.NAMESPACE, 2))
    assert (6, 0, 2) in asked
    assert answer(commands.set_features(Feature.NUMBER_OF_QUEUES, 1))[0] & 0x7FF == 0x15
    assert len(asked) == 3
