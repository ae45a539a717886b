"""The sharing protocol: its bytes, its limits, and an owner that gets random messages."""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import socket
from pathlib import Path

import attrs
import pytest

import nvme_async
from nvme_async.errors import ConfigurationError, LeaseError
from nvme_async.sharing.channel import Channel, connect, receive
from nvme_async.sharing.passthrough import check
from nvme_async.sharing.policy import Policy
from nvme_async.sharing.protocol import MAX_BODY, MAX_DATA, MAX_MESSAGE, Grant, Message, decode, encode
from nvme_async.sharing.stop_page import StopPage
from nvme_async.spec import commands


def test_golden_bytes_of_a_message() -> None:
    packet = encode("stop", {"life": 7}, id=0x0102, data=b"\x01\x02")
    header = b"NVSH\x01\x00\x00\x00\x02\x01\x00\x00\x18\x00\x00\x00"
    assert packet == header + b'{"kind":"stop","life":7}' + b"\x01\x02"
    message = decode(packet)
    assert (message.kind, message.id, message.body, message.data) == ("stop", 0x0102, {"life": 7}, b"\x01\x02")


def test_a_malformed_message_is_refused() -> None:
    good = encode("x", {"a": 1})
    for packet in (
        b"",
        b"NVSH",
        b"HSVN" + good[4:],
        good[:12] + b"\xff\xff\xff\xff" + good[16:],
        good[:-1],
        good[:12] + b"\x02\0\0\0" + b"[]",
        good[:12] + b"\x02\0\0\0" + b"{}",
        good[:12] + b"\x0a\0\0\0" + b'{"kind":1}',
    ):
        with pytest.raises(LeaseError) as refused:
            decode(packet)
        assert refused.value.code == "invalid"
    with pytest.raises(LeaseError, match="the limits are"):
        encode("x", {"a": "b" * MAX_BODY})
    with pytest.raises(LeaseError, match="the limits are"):
        encode("x", data=bytes(MAX_DATA + 65))


def test_descriptors_of_refused_messages_are_closed() -> None:
    fd = os.memfd_create("x")
    with pytest.raises(LeaseError):
        decode(b"nothing", [fd])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_numbers_and_strings_are_checked() -> None:
    message = Message("map", 1, {"iova": -1, "nbytes": True, "name": "x" * 300})
    for name in ("iova", "nbytes", "name", "none"):
        with pytest.raises(LeaseError, match=f"map: {name} is"):
            message.number(name)
    assert len(message.text("name")) == 256
    with pytest.raises(LeaseError, match="not a string"):
        message.text("iova")
    with pytest.raises(LeaseError, match="without a descriptor"):
        message.take()


def test_a_grant_of_a_newer_owner_is_understood_and_a_short_one_is_not() -> None:
    values: dict[str, object] = {field.name: 0 for field in attrs.fields(Grant)}
    assert Grant.of(Message("answer", 1, {**values, "newer": 1})).lease == 0
    del values["token"]
    with pytest.raises(LeaseError, match="is invalid"):
        Grant.of(Message("answer", 1, dict(values)))


def test_a_stop_word_never_goes_back() -> None:
    page = StopPage()
    slot = page.take()
    lives = [page.life(slot), page.end_life(slot), page.end_life(slot)]
    assert lives == sorted(set(lives))
    page.give(slot)
    assert page.life(slot) > lives[-1]
    with pytest.raises(OSError, match="Permission denied"):
        mmap.mmap(page.read_only, 4096)
    again = StopPage(os.dup(page.fd))
    assert again.take(slot) == slot
    assert again.life(slot) == page.life(slot)
    again.close()
    page.close()
    page.close()


def test_an_admin_command_transfers_no_more_than_declared() -> None:
    def asked(command: commands.Command, nbytes: int, data: bytes = b"") -> Message:
        return Message("admin", 1, {"nbytes": nbytes}, command.pack() + data)

    command, _ = check(asked(attrs.evolve(commands.identify(1), prp1=0xDEAD000, mptr=4), 4096))
    assert (command.prp1, command.prp2, command.mptr, command.data_length) == (0, 0, 0, 4096)
    for wrong in (
        asked(commands.identify(1), 512),
        asked(commands.get_log_page(2, 8192), 4096),
        asked(commands.identify(1), 4096, b"x"),
        asked(commands.get_features(7), MAX_DATA + 1),
        Message("admin", 1, {"nbytes": 0}, b"short"),
        asked(attrs.evolve(commands.identify(1), opcode=0xC3), 4096),
    ):
        with pytest.raises(LeaseError) as refused:
            check(wrong)
        assert refused.value.code == "invalid"


def test_the_policy_names_its_limits() -> None:
    for name, value in {"workers": 0, "queues": 17, "pool_bytes": 1, "entries": 1, "stop_seconds": -1}.items():
        with pytest.raises(ConfigurationError, match=f"{name} is {value}"):
            Policy.of({name: value})
    log = commands.get_log_page(7, 512)
    Policy().check_admin(log, set())
    with pytest.raises(LeaseError, match="new log"):
        Policy().check_admin(attrs.evolve(log, cdw10=log.cdw10 | 1 << 8), set())
    Policy().check_admin(commands.abort(4, 1), {4})
    with pytest.raises(LeaseError, match="own queues"):
        Policy(admin="all").check_admin(commands.abort(5, 1), {4})


async def test_a_peer_of_another_version_is_answered_and_disconnected(tmp_path: Path) -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller, controller.share(tmp_path / "s"):
        sock = await connect(str(tmp_path / "s"), 30.0)
        packet = bytearray(encode("lease", {"queues": 1}, id=1))
        packet[4] = 9
        sock.send(packet)
        sock.settimeout(2.0)
        answer = await asyncio.to_thread(receive, sock)
        assert answer is not None
        assert answer.body["code"] == "version"
        assert await asyncio.to_thread(receive, sock) is None
        sock.close()


async def test_an_owner_survives_any_message(tmp_path: Path) -> None:
    rng = random.Random(5)
    kinds = ["lease", "attach", "map", "unmap", "create", "delete", "renew", "admin"]
    kinds += ["health", "detach", "list", "stopped", "held", "x"]
    names = ["lease", "token", "iova", "nbytes", "offset", "qid", "entries", "cq", "sq"]
    names += ["life", "queues", "pid", "hold"]
    values = [0, 1, -1, 4096, 1 << 32, 1 << 64, 16, "x", None, True, [1], {"a": 1}, 1.5, "y" * 300]

    def packet() -> bytes:
        body = {rng.choice(names): rng.choice(values) for _ in range(rng.randrange(5))}
        data = rng.randbytes(rng.randrange(80))
        made = bytearray(encode(rng.choice(kinds), body, id=rng.choice([0, 1, 2]), data=data))
        if rng.random() < 0.3:
            made[rng.randrange(len(made))] = rng.randrange(256)
        return bytes(made[: rng.randrange(len(made))] if rng.random() < 0.1 else made)

    where = f"shared:{tmp_path / 's'}"
    async with (
        nvme_async.open("emulated:size=16MiB") as controller,
        controller.share(tmp_path / "s") as share,
        nvme_async.open(where, pool_bytes=4 << 20) as worker,
    ):
        for _ in range(150):
            sock = await connect(str(tmp_path / "s"), 30.0)
            try:
                for _ in range(rng.randrange(20)):
                    fds = [os.memfd_create("x")] if rng.random() < 0.2 else []
                    try:
                        socket.send_fds(sock, [packet()], fds)
                    finally:
                        for fd in fds:
                            os.close(fd)
                    if rng.random() < 0.3:
                        await asyncio.sleep(0)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                pass
            sock.close()
            if rng.random() < 0.1:
                assert await worker.namespaces[1].read(0)
        async with asyncio.timeout(60.0):
            while len(share.leases) > 1 or len(share._connections) > 1:
                await asyncio.sleep(0.01)
        assert await worker.namespaces[1].read(0)
        assert controller.state == "ready"


@pytest.mark.alone
async def test_a_silent_peer_is_disconnected_and_a_backlog_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvme_async.sharing.connection.SILENT_SECONDS", 0.1)
    async with nvme_async.open("emulated:size=16MiB") as controller, controller.share(tmp_path / "s") as share:
        sock = await connect(str(tmp_path / "s"), 30.0)
        async with asyncio.timeout(60.0):
            while not share._connections:
                await asyncio.sleep(0.01)
            while share._connections:
                await asyncio.sleep(0.01)
        sock.close()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ended: list[str] = []
    channel = Channel(ours, lambda message: None, ended.append)
    for _ in range(10_000):
        channel.send("notice", {"text": "x" * 1000})
    assert ended == ["the peer does not read its messages"]
    theirs.close()


async def test_too_large_a_packet_ends_the_connection() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE)
    ended: list[str] = []
    Channel(ours, lambda message: None, ended.append)
    theirs.send(bytes(MAX_MESSAGE + 1))
    await asyncio.sleep(0.05)
    assert ended == ["a message that exceeds the limits of the protocol"]
    theirs.close()
