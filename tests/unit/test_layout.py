"""The layout of queue memory, byte for byte: a successor of another version reads it."""

import asyncio
import struct

from ring_controller import RingController
from tracker_sum import tracker_sum

from nvme_async.spec import commands


async def test_golden_bytes_of_a_queue_with_one_command_in_flight():
    ring = RingController(asyncio.get_running_loop(), entries=4, n_trackers=2, max_transfer=8192, qid=5)
    try:
        task = asyncio.create_task(
            ring.qp.request(commands.read(1, 0x123456789, 2).pack(), read_nbytes=1024, to_host=True, tag=0xCAFE)
        )
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        memory = bytes(ring.view)
        header = memory[:4096]
        assert header[:4] == b"QVQ1"
        assert struct.unpack_from("<IHHIII", header, 4) == (1, 5, 0, 4, 2, 1)
        assert struct.unpack_from("<QQQQII", header, 24) == (0x1000, 0x2000, 0x3000, 0x4000, 64, 1)
        assert struct.unpack_from("<I4s", header, 64) == (0, b"SUMS")
        submitted, ringing, rung, reaped, cq_ringing, cq_rung = struct.unpack_from("<6Q", header, 128)
        assert (submitted, ringing, rung, reaped, cq_ringing, cq_rung) == (1, 1, 1, 0, 0, 0)
        tracker = memory[0x3000:0x3080]
        piece = struct.unpack_from("<Q", tracker, 24)[0]
        assert tracker[:24] == bytes.fromhex("020002000100000000000000000000000000000000000000")
        assert tracker[40:52] == bytes.fromhex("896745230100000001000000")
        state, cid, flags, position, tag, offset, nbytes = struct.unpack_from("<IHHQQQI", tracker, 64)
        assert (state, cid, flags, position, tag, nbytes) == (1, 2, 0b101, 0, 0xCAFE, 1024)
        status, total, dw0, dw1 = struct.unpack_from("<HHII", tracker, 100)
        assert (status, total, dw0, dw1) == (0, 0x8EC4, 0, 0)
        assert total == tracker_sum(tracker)
        assert piece == ring.pool.iova + offset
        assert memory[0x1000:0x1040] == tracker[:64]
        assert len(memory) == 0x5000
        (sqe,) = ring.fetch()
        ring.post(ring.cid(sqe), dw0=0x11223344)
        ring.qp.reap()
        await task
        memory = bytes(ring.view)
        # Free: state, command id and flags in one; the copy of the command keeps its id.
        assert struct.unpack_from("<IHH", memory, 0x3000 + 64) == (0, 0, 0)
        assert memory[0x3000:0x3040] == tracker[:64]
        assert struct.unpack_from("<HHII", memory, 0x3000 + 100) == (0, 0x8EC4 ^ 0x9013, 0x11223344, 0)
        assert struct.unpack_from("<6Q", memory, 128) == (1, 1, 1, 1, 1, 1)
    finally:
        ring.close()
