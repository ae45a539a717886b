"""NVMe/TCP's hot path against a peer whose every byte the test controls."""

from __future__ import annotations

import asyncio
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tcp_wire import Wired, c2h_data, crc, pdu, r2t, response, take, take_pdu

from nvme_async.errors import CommandError
from nvme_async.native import _tcp

READ, WRITE = 2, 1


@pytest.fixture
async def wired():
    made = []

    def make(**options):
        made.append(Wired(asyncio.get_running_loop(), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def soon(awaitable):
    return asyncio.ensure_future(_await(awaitable))


async def _await(awaitable):
    return await awaitable


async def sent(one, awaitable):
    """The task, once its command's PDU is with the peer; and that PDU."""
    task = soon(awaitable)
    await asyncio.sleep(0.01)
    return task, take_pdu(one.peer)


# RFC 3720, B.4.
@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
)
def test_crc32c_of_known_data(data, digest):
    assert _tcp.crc32c(data) == _tcp.crc32c(data, software=True) == digest == crc(data)


@given(st.integers(0, 20000), st.integers(0, 20000), st.integers(0, 7), st.randoms())
def test_crc32c_by_instruction_and_by_tables_agree_for_any_split(nbytes, cut, crooked, random):
    data = memoryview(random.randbytes(nbytes + crooked))[crooked:]
    cut = min(cut, nbytes)
    digest = _tcp.crc32c(data, software=True)
    assert _tcp.crc32c(data) == digest
    assert _tcp.crc32c(data[cut:], _tcp.crc32c(data[:cut])) == digest


async def test_command_capsules_byte_by_byte(wired):
    one = wired()
    task, capsule = await sent(one, one.request(READ, 0x1_2345_6789, 2, read_nbytes=8192))
    assert capsule[:8] == bytes.fromhex("04 00 48 00 48000000")
    sqe = capsule[8:]
    cid = sqe[2:4]
    assert sqe == (
        b"\x02\x40" + cid + bytes.fromhex("01000000") + bytes(8) + bytes(8)
        # SGL1: a transport data block (type 5h, subtype Ah) of 8192 bytes
        + bytes(8) + bytes.fromhex("00200000 000000 5a")
        + bytes.fromhex("89674523 01000000 01000000") + bytes(12)
    )  # fmt: skip
    one.peer.sendall(c2h_data(int.from_bytes(cid, "little"), b"r" * 8192))
    assert await task == (0, 0, b"r" * 8192)

    task, capsule = await sent(one, one.request(WRITE, 7, 1, b"w" * 4096))
    assert capsule[:8] == bytes.fromhex("04 00 48 48 48100000")
    assert capsule[8 + 24 : 8 + 40] == bytes(8) + bytes.fromhex(
        "00100000 000000 01"
    )  # data block, offset in the capsule
    assert capsule[72:] == b"w" * 4096
    one.peer.sendall(response(struct.unpack_from("<H", capsule, 10)[0], dw0=5, dw1=6))
    assert await task == (5, 6, None)

    task, capsule = await sent(one, one.request(0, 0, 1))
    assert capsule[8 + 24 : 8 + 40] == bytes(12) + bytes.fromhex("000000 5a")
    one.peer.sendall(response(struct.unpack_from("<H", capsule, 10)[0]))
    await task


async def test_digests_and_alignment_of_what_is_sent(wired):
    one = wired(hdgst=True, ddgst=True, alignment=64, in_capsule=8192)
    data = os.urandom(4096)
    task, capsule = await sent(one, one.request(WRITE, 0, 1, data))
    assert capsule[1] == 3
    assert capsule[3] == 128  # PDO: 72 + 4, then to a multiple of 64
    assert struct.unpack_from("<I", capsule, 72)[0] == crc(capsule[:72])
    assert capsule[76:128] == bytes(52)
    assert capsule[128:-4] == data
    assert struct.unpack("<I", capsule[-4:])[0] == crc(data)
    one.peer.sendall(response(struct.unpack_from("<H", capsule, 10)[0], hdgst=True))
    await task


@pytest.mark.parametrize("nbytes", [8192, 100_000 // 512 * 512])
async def test_data_for_r2t_is_sent_in_pieces_of_maxh2cdata(wired, nbytes):
    one = wired(max_h2c=4096 * 3)
    data = os.urandom(nbytes)
    task, capsule = await sent(one, one.request(WRITE, 0, nbytes // 512, data))
    assert len(capsule) == 72
    assert capsule[8 + 39] == 0x5A
    cid = struct.unpack_from("<H", capsule, 10)[0]
    got = bytearray(nbytes)
    # Two R2Ts; the second half is requested first, while the first is being sent.
    half = nbytes // 2
    one.peer.sendall(r2t(cid, 0xBEEF, 0, half) + r2t(cid, 0xCAFE, half, nbytes - half))
    for ttag, end in ((0xBEEF, half), (0xCAFE, nbytes)):
        last = False
        while not last:
            await asyncio.sleep(0.001)
            part = take_pdu(one.peer)
            kind, flags, hlen, pdo, _ = struct.unpack_from("<BBBBI", part)
            cccid, tag, offset, length = struct.unpack_from("<HHII", part, 8)
            assert (kind, hlen, pdo, cccid, tag) == (6, 24, 24, cid, ttag)
            assert length <= 4096 * 3
            got[offset : offset + length] = part[24:]
            last = bool(flags & 4)
            assert last == (offset + length == end)
    assert got == data
    one.peer.sendall(response(cid))
    await task


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("success", [False, True])
async def test_a_response_may_be_split_at_any_byte(wired, digests, success):
    one = wired(hdgst=digests, ddgst=digests)
    data = os.urandom(200)
    options = {"hdgst": digests}
    buffer = bytearray(200)
    task, capsule = await sent(one, one.request(READ, buffer=buffer))
    cid = struct.unpack_from("<H", capsule, 10)[0]
    answer = c2h_data(cid, data[:80], 0, flags=0, ddgst=digests, pad=12, **options)
    answer += c2h_data(cid, data[80:], 80, flags=0x0C if success else 4, ddgst=digests, **options)
    answer += b"" if success else response(cid, **options)
    for i in range(len(answer)):
        assert not task.done()
        one.peer.sendall(answer[i : i + 1])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert await task == (0, 0, 200)
    assert buffer == data
    # And every cut in two.
    for cut in range(1, len(answer)):
        buffer[:] = bytes(200)
        task, capsule = await sent(one, one.request(READ, buffer=buffer)) if cut % 40 == 1 else (None, b"")
        if task is None:
            continue
        cid = struct.unpack_from("<H", capsule, 10)[0]
        answer = c2h_data(cid, data, 0, ddgst=digests, **options)
        one.peer.sendall(answer[:cut])
        await asyncio.sleep(0.001)
        one.peer.sendall(answer[cut:])
        await task
        assert buffer == data


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_responses_in_any_order_and_any_pieces(data):
    """Many commands, completed in any order, with data split into PDUs and the stream split
    anywhere.
    """

    async def run():
        digests = data.draw(st.booleans())
        one = Wired(asyncio.get_running_loop(), hdgst=digests, ddgst=digests)
        try:
            sizes = data.draw(st.lists(st.sampled_from([1, 511, 4096, 20000, 140_000]), min_size=1, max_size=12))
            buffers = [bytearray(size) for size in sizes]
            tasks = [soon(one.request(READ, buffer=buffer)) for buffer in buffers]
            await asyncio.sleep(0.01)
            cids = [struct.unpack_from("<H", take_pdu(one.peer), 10)[0] for _ in sizes]
            contents = [os.urandom(size) for size in sizes]
            stream = b""
            for i in data.draw(st.permutations(range(len(sizes)))):
                at = 0
                while at < sizes[i]:
                    part = data.draw(st.integers(1, sizes[i] - at))
                    last = at + part == sizes[i]
                    success = last and data.draw(st.booleans())
                    flags = (4 if last else 0) | (8 if success else 0)
                    stream += c2h_data(
                        cids[i], contents[i][at : at + part], at, flags=flags, hdgst=digests, ddgst=digests
                    )
                    at += part
                    if at < sizes[i] and sizes[i] - at > 4096 and part < 1000:
                        part = sizes[i] - at  # avoids thousands of tiny PDUs
                        success = data.draw(st.booleans())
                        flags = 4 | (8 if success else 0)
                        stream += c2h_data(cids[i], contents[i][at:], at, flags=flags, hdgst=digests, ddgst=digests)
                        at = sizes[i]
                if not success:
                    stream += response(cids[i], hdgst=digests)
            at = 0
            one.peer.setblocking(False)
            while at < len(stream):
                part = data.draw(st.integers(1, 70_000))
                try:
                    at += one.peer.send(stream[at : at + part])
                except BlockingIOError:
                    pass
                await asyncio.sleep(0)
            async with asyncio.timeout(60):
                await asyncio.gather(*tasks)
            assert buffers == contents
            assert not one.faults
        finally:
            one.close()

    asyncio.run(run())


async def test_wrong_data_digest_fails_that_command_alone(wired):
    one = wired(ddgst=True)
    first, a = await sent(one, one.request(READ, buffer=bytearray(512)))
    second, b = await sent(one, one.request(READ, buffer=bytearray(512)))
    bad = bytearray(c2h_data(struct.unpack_from("<H", a, 10)[0], b"x" * 512, ddgst=True))
    bad[100] ^= 1
    one.peer.sendall(bad + c2h_data(struct.unpack_from("<H", b, 10)[0], b"y" * 512, ddgst=True))
    with pytest.raises(CommandError) as caught:
        await first
    assert (caught.value.sct, caught.value.sc) == (0, 0x22)
    assert (await second)[2] == 512
    assert one.link.inspect()["data_digest_errors"] == 1
    assert not one.faults


async def test_a_short_read_is_an_error(wired):
    one = wired()
    task, capsule = await sent(one, one.request(READ, buffer=bytearray(1024)))
    cid = struct.unpack_from("<H", capsule, 10)[0]
    one.peer.sendall(c2h_data(cid, b"x" * 512, flags=4) + response(cid))
    with pytest.raises(CommandError) as caught:
        await task
    assert caught.value.sc == 0x04


HOSTILE = {
    "a command id that is not out": lambda cid: response(cid ^ 0x55),
    "data for a command id that is not out": lambda cid: c2h_data(cid ^ 0x55, b"x" * 512),
    "a response twice": lambda cid: c2h_data(cid, b"x" * 512) + response(cid),
    "data beyond the buffer": lambda cid: c2h_data(cid, b"x" * 1024),
    "data from an offset beyond the buffer": lambda cid: c2h_data(cid, b"x" * 512, 512),
    "an offset that wraps around": lambda cid: c2h_data(cid, b"x" * 512, 0xFFFFFF00),
    "DATAL and PLEN that differ": lambda cid: c2h_data(cid, b"x" * 512, length=256),
    "no data at all in C2HData": lambda cid: c2h_data(cid, b""),
    "SUCCESS without LAST_PDU": lambda cid: c2h_data(cid, b"x" * 512, flags=8),
    "R2T for a read": lambda cid: r2t(cid, 1, 0, 512),
    "a type that comes from hosts only": lambda cid: pdu(0x04, bytes(64)),
    "ICResp out of place": lambda cid: pdu(0x01, bytes(120)),
    "a type that does not exist": lambda cid: pdu(0x0A, bytes(16)),
    "a header of the wrong length": lambda cid: pdu(0x05, bytes(20)),
    "a digest that was not agreed": lambda cid: response(cid, hdgst=True),
    "PDO before the header's end": lambda cid: c2h_data(cid, b"x" * 512)[:3] + b"\x08" + c2h_data(cid, b"x" * 512)[4:],
    "a TermReq": lambda cid: pdu(0x03, struct.pack("<HI", 5, 12) + bytes(10)),
    "the end of the connection": lambda cid: b"",
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_protocol_violation_fails_the_link_and_writes_no_memory(wired, what):
    one = wired()
    buffer = bytearray(b"." * 1536)
    task, capsule = await sent(one, one.request(READ, buffer=memoryview(buffer)[512:1024]))
    data = HOSTILE[what](struct.unpack_from("<H", capsule, 10)[0])
    if data:
        one.peer.sendall(data)
    else:
        one.peer.close()
    await asyncio.sleep(0.02)
    assert len(one.faults) == 1, one.faults
    assert buffer[:512] == buffer[1024:] == b"." * 512
    one.qp.fail_waiters(ConnectionError("over"))
    if what == "a response twice":
        await task
    else:
        with pytest.raises(ConnectionError):
            await task


@pytest.mark.parametrize("offset", [0, 10, 20, 26])
async def test_header_digest_errors_end_the_connection(wired, offset):
    one = wired(hdgst=True)
    task, capsule = await sent(one, one.request(READ, buffer=bytearray(512)))
    answer = bytearray(c2h_data(struct.unpack_from("<H", capsule, 10)[0], b"x" * 512, hdgst=True))
    answer[offset] ^= 0x80
    one.peer.sendall(answer)
    await asyncio.sleep(0.02)
    assert len(one.faults) == 1
    one.qp.fail_waiters(ConnectionError("over"))
    with pytest.raises(ConnectionError):
        await task


async def test_a_cancelled_read_no_longer_writes_the_buffer(wired):
    one = wired()
    buffer = bytearray(b"." * 100_000)
    task, capsule = await sent(one, one.request(READ, buffer=buffer))
    cid = struct.unpack_from("<H", capsule, 10)[0]
    answer = c2h_data(cid, b"x" * 100_000)
    one.peer.sendall(answer[:50_000])
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    buffer += b"!"  # not exported any more
    was = bytes(buffer)
    one.peer.sendall(answer[50_000:])
    await asyncio.sleep(0.02)
    assert buffer == was
    assert one.qp.n_outstanding == 0
    assert not one.faults


async def test_a_cancelled_write_sends_the_data_as_of_its_cancellation(wired):
    one = wired(ddgst=True)
    data = bytearray(os.urandom(100_000))
    was = bytes(data)
    task, capsule = await sent(one, one.request(WRITE, buffer=data))
    cid = struct.unpack_from("<H", capsule, 10)[0]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    data[:] = bytes(100_000)
    data += b"!"
    one.peer.sendall(r2t(cid, 9, 0, 100_000))
    await asyncio.sleep(0.02)
    got = b""
    while len(got) < 100_000:
        part = take_pdu(one.peer)
        assert struct.unpack("<I", part[-4:])[0] == crc(part[24:-4])
        got += part[24:-4]
        await asyncio.sleep(0)
    assert got == was
    one.peer.sendall(response(cid))
    await asyncio.sleep(0.01)
    assert one.qp.n_outstanding == 0


async def test_a_write_that_ends_early_returns_the_buffer(wired):
    """The controller ends the command early: the requested data must still be sent, from
    unshared memory.
    """
    one = wired(max_h2c=1 << 20)
    data = bytearray(os.urandom(1 << 20))
    was = bytes(data)
    task, capsule = await sent(one, one.request(WRITE, buffer=data))
    cid = struct.unpack_from("<H", capsule, 10)[0]
    one.peer.sendall(r2t(cid, 9, 0, 1 << 20) + response(cid, 0x4002))
    with pytest.raises(CommandError):
        await task
    data[:] = bytes(1 << 20)
    data += b"!"
    got = bytearray()
    one.peer.setblocking(False)
    async with asyncio.timeout(60):
        while len(got) < 24 + (1 << 20):
            try:
                got += one.peer.recv(1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0.001)
    assert got[24:] == was
    assert one.link.inspect()["answers_before_data_left"] == 1


async def test_retryable_commands_are_resent_over_the_next_connection(wired):
    import socket

    one = wired()
    read, _ = await sent(one, one.request(READ, 5, buffer=bytearray(512)))
    write, _ = await sent(one, one.request(WRITE, 6, buffer=b"w" * 512))
    one.peer.close()
    await asyncio.sleep(0.02)
    assert len(one.faults) == 1
    one.qp.silence(True)
    one.cut()
    one.link.detach()
    one.qp.restart(frozenset({READ}), ConnectionError("the connection was lost"), 3)
    with pytest.raises(ConnectionError):
        await write
    one.ours, one.peer = socket.socketpair()
    one.ours.setblocking(False)
    one.link.attach(one.ours, **one.limits)
    one.listen()
    one.qp.silence(False)
    capsule = take_pdu(one.peer)
    assert struct.unpack_from("<Q", capsule, 8 + 40)[0] == 5
    one.peer.sendall(c2h_data(struct.unpack_from("<H", capsule, 10)[0], b"z" * 512))
    assert (await read)[2] == 512
    # A second loss is reported too.
    one.peer.close()
    await asyncio.sleep(0.02)
    assert len(one.faults) == 2


def test_take_reports_an_early_end():
    import socket

    a, b = socket.socketpair()
    b.close()
    with pytest.raises(EOFError):
        take(a, 1)
    a.close()
