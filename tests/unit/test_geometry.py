"""Requests and the format that they were made for: they wait while a command that may change it
is in flight, and end with an error once it has changed. Also reads that transfer less than
requested.
"""

import asyncio
import struct

import pytest
from ring_controller import started

from nvme_async.errors import CommandError, NamespaceChanged
from nvme_async.native import _hotpath

CHANGED = NamespaceChanged("the namespace was formatted")


def namespace(ring, block_size=4096):
    core = _hotpath.NamespaceCore()
    core._configure(1, 1 << 16, block_size, 32, {asyncio.get_running_loop(): ring.qp})
    return core


def reformat(core, ring, block_size):
    core._expire(CHANGED)
    core._configure(1, 1 << 16, block_size, 32, {asyncio.get_running_loop(): ring.qp})
    ring.qp.go_on()


@pytest.fixture
async def ns(ring):
    core = namespace(ring)
    ring.qp.bind(asyncio.get_running_loop())
    return core


async def test_a_request_waits_while_its_namespace_is_held_and_is_sent_afterwards(ring, ns):
    ns.geometry.hold()
    made_before = ns.flush()
    (task,) = await started(made_before)
    assert ring.fetch() == []
    assert ring.qp.inspect()["held"] == 1
    ns.geometry.release()
    ring.qp.go_on()
    await asyncio.sleep(0)
    (sqe,) = ring.fetch()
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    await task


async def test_a_request_made_before_the_format_changed_is_never_sent(ring, ns):
    late = ns.write(0, b"x" * 4096)
    ns.geometry.hold()
    (waiting,) = await started(ns.write(0, b"x" * 4096))
    reformat(ns, ring, 512)
    for request in (waiting, late):
        with pytest.raises(NamespaceChanged):
            await request
    assert ring.fetch() == []
    (task,) = await started(ns.write(0, b"x" * 4096))
    (sqe,) = ring.fetch()
    assert struct.unpack_from("<H", sqe, 48) == (7,)  # eight blocks of 512 bytes
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    await task


@pytest.mark.parametrize("ring", [{"entries": 4}], indirect=True)
async def test_requests_in_line_for_a_command_id_are_checked_again(ring, ns):
    other = namespace(ring)
    first = await started(*(other.flush() for _ in range(3)))
    in_line = await started(ns.write(0, b"x" * 4096))
    last = await started(other.flush())
    ns._expire(CHANGED)
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    with pytest.raises(NamespaceChanged):
        await in_line[0]
    await asyncio.gather(*first)
    await asyncio.sleep(0)
    (sqe,) = ring.fetch()  # its turn was passed to the next
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    await last[0]


async def test_commands_in_flight_during_a_format_change_fail(ring, ns):
    target = bytearray(4096)
    tasks = await started(ns.read(0), ns.readinto(1, target), ns.write(2, b"x" * 4096))
    sqes = ring.fetch()
    reformat(ns, ring, 512)
    for sqe in sqes:
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    for task in tasks:
        with pytest.raises(NamespaceChanged):
            await task
    assert ring.qp.inspect()["pending"] == []


async def test_a_batch_stops_at_a_hold_and_fails_when_the_format_changed(ring, ns):
    lbas = struct.pack("<32Q", *range(32))
    data = bytearray(32 * 4096)
    batch = ring.qp.batch(2, 1, lbas, 1, data, 4096, to_host=True, depth=4, geometry=ns.geometry)

    async def run():
        return await batch

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    sqes = ring.fetch()
    assert len(sqes) == 4
    ns.geometry.hold()
    ring.qp.go_on()
    for sqe in sqes:
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    for _ in range(5):
        await asyncio.sleep(0)
    assert ring.fetch() == []
    assert ring.qp.outstanding_of((1,)) == 0
    reformat(ns, ring, 512)
    with pytest.raises(NamespaceChanged):
        await task
    assert ring.fetch() == []


async def test_a_batch_continues_after_a_hold_that_changed_nothing(ring, ns):
    lbas = struct.pack("<6Q", *range(6))
    batch = ring.qp.batch(1, 1, lbas, 1, b"y" * 6 * 4096, 4096, to_host=False, depth=2, geometry=ns.geometry)

    async def run():
        return await batch

    task = asyncio.create_task(run())
    sent = 0
    ns.geometry.hold()
    await asyncio.sleep(0)
    assert ring.fetch() == []
    ns.geometry.release()
    ring.qp.go_on()
    while not task.done():
        for sqe in ring.fetch():
            ring.post(ring.cid(sqe))
            sent += 1
        ring.qp.reap()
        await asyncio.sleep(0)
    assert (await task).failed == 0
    assert sent == 6


async def test_a_request_cancelled_while_held_leaves_nothing_behind(ring, ns):
    ns.geometry.hold()
    buffer = bytearray(4096)
    (task,) = await started(ns.readinto(0, buffer))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    buffer.extend(b"not exported any more")
    assert ring.qp.inspect()["held"] == 0


async def test_a_closed_queue_pair_ends_the_wait_of_held_requests(ring, ns):
    ns.geometry.hold()
    (task,) = await started(ns.read(0))
    ring.qp.refuse(RuntimeError("closed"))
    with pytest.raises(RuntimeError, match="closed"):
        await task
    ring.qp.refuse(None)


async def test_commands_are_counted_per_namespace(ring, ns):
    tasks = await started(ns.flush(), ns.read(0))
    assert ring.qp.outstanding_of((1,)) == 2
    assert ring.qp.outstanding_of((2, 3)) == 0
    assert ring.qp.outstanding_of() == 2
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    await asyncio.gather(*tasks)
    assert ring.qp.outstanding_of((1,)) == 0


async def test_resent_commands_become_flushes_after_a_format_change(ring, ns):
    (write,) = await started(ns.write(3, b"x" * 4096))
    batch = ring.qp.batch(1, 1, struct.pack("<2Q", 1, 2), 1, b"y" * 8192, 4096, to_host=False, geometry=ns.geometry)

    async def run():
        return await batch

    many = asyncio.create_task(run())
    (other,) = await started(namespace(ring).write(9, b"z" * 4096))
    assert len(ring.fetch()) == 4
    ring.qp.silence(True)
    ring.sq_head = ring.cq_tail = 0
    ring.phase = 1
    ring.qp.restart(frozenset({1}), CommandError(0, 7), 3)
    reformat(ns, ring, 512)
    ring.doorbells.write32(0, 0)
    ring.qp.silence(False)
    sqes = ring.fetch()
    assert sorted(sqe[0] for sqe in sqes) == [0, 0, 0, 1]
    assert [struct.unpack_from("<Q", sqe, 40)[0] for sqe in sqes if sqe[0] == 1] == [9]
    # A successor would still find every tracker complete, and equal to its ring entry.
    assert _hotpath.verify_queue(ring.qp)["in_flight"] == 4
    for sqe in sqes:
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    for task in (write, many):
        with pytest.raises(NamespaceChanged):
            await task
    await other


def fill(ring, sqe, of, moved):
    """The controller transfers `moved` of the command's `of` bytes."""
    for iova, length in ring.walk(sqe, of):
        ring.write(iova, b"\xaa" * min(length, moved))
        moved -= min(length, moved)


@pytest.mark.parametrize("moved", [8192, 0])
async def test_a_read_returns_transferred_data_or_zeroes(ring, ns, moved):
    (task,) = await started(ns.write(0, b"secret42" * 1024))
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    await task
    (task,) = await started(ns.read(0, 2))
    (sqe,) = ring.fetch()
    fill(ring, sqe, 8192, moved)
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    assert (await task).hex() == (b"\xaa" * moved).ljust(8192, b"\0").hex()


@pytest.mark.parametrize("moved", [512, 1024, 4096, 7680])
async def test_a_read_that_ended_early_is_an_error(ring, ns, moved):
    into = bytearray(8192)
    for make in (lambda: ns.read(0, 2), lambda: ns.readinto(0, into)):
        (task,) = await started(make())
        (sqe,) = ring.fetch()
        fill(ring, sqe, 8192, moved)
        ring.post(ring.cid(sqe))
        ring.qp.reap()
        with pytest.raises(CommandError) as caught:
            await task
        assert (caught.value.sct, caught.value.sc) == (0, 4)
    assert into == bytes(8192)


async def test_elements_of_a_batch_that_ended_early_fail_alone(ring):
    lbas = struct.pack("<3Q", 0, 1, 2)
    data = bytearray(b"z" * 3 * 4096)
    batch = ring.qp.batch(2, 1, lbas, 1, data, 4096, to_host=True)

    async def run():
        return await batch

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    for sqe, moved in zip(ring.fetch(), (4096, 512, 0), strict=True):
        fill(ring, sqe, 4096, moved)
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    assert list((await task).statuses) == [0, 4, 0]
    assert data == b"\xaa" * 4096 + b"z" * 4096 + bytes(4096)


async def test_the_answer_of_an_admin_command_may_be_short_and_is_padded_with_zeroes(ring, ns):
    (task,) = await started(ns.write(0, b"secret42" * 512))
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    await task
    (task,) = await started(ring.qp.request(bytes([2]) + bytes(63), read_nbytes=4096))
    (sqe,) = ring.fetch()
    fill(ring, sqe, 4096, 16)
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    assert (await task)[2] == b"\xaa" * 16 + bytes(4080)
