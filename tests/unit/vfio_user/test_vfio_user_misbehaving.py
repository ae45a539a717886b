"""The vfio-user client against peers that misbehave: broken frames, wrong answers, none at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import threading
import time
from typing import NoReturn

import pytest
from fake_vfio_user import (
    DMA_READ,
    ERROR,
    GET_INFO,
    HEADER,
    REGION_READ,
    REPLY,
    FakeServer,
    Message,
    attach,
)

from nvme_async.device.vfio_user_protocol import Command
from nvme_async.errors import (
    ControllerFatal,
    ControllerGone,
    ControllerTimeout,
)


def in_pieces(server: FakeServer, data: bytes, *cuts: int) -> None:
    for begin, end in itertools.pairwise([0, *cuts, len(data)]):
        server.send(data[begin:end])
        time.sleep(0.005)


def read_for_ever(server: FakeServer) -> NoReturn:
    with attach(server) as device:
        while True:
            device.read32(0)


@pytest.mark.usefixtures("no_garbage_of_others", "no_descriptor_is_left")
class TestPeersMisbehave:
    @pytest.mark.parametrize("cuts", [(1,), (15,), (16,), (17,), (8, 20, 30), tuple(range(1, 36))])
    def test_split_replies(self, server: FakeServer, cuts: tuple[int, ...]) -> None:
        with attach(server) as device:

            def answer(server: FakeServer, request: Message) -> None:
                in_pieces(server, server.message(request, request.payload + b"\x44\x33\x22\x11"), *cuts)

            server.override[REGION_READ] = answer
            assert device.read32(0) == 0x11223344
            assert device.read32(0) == 0x11223344

    def test_slow_peer(self, server: FakeServer) -> None:
        with attach(server, timeout=0.1) as device:
            release = threading.Event()

            def answer(server: FakeServer, request: Message) -> None:
                release.wait(5)
                FakeServer.answer(server, request)

            server.override[REGION_READ] = answer
            started = time.monotonic()
            with pytest.raises(ControllerTimeout, match="REGION_READ in time"):
                device.read32(0)
            assert 0.09 < time.monotonic() - started < 30
            # The late reply is recognised, and the connection continues.
            server.registers[4] = 9
            del server.override[REGION_READ]
            release.set()
            for _ in range(50):
                with contextlib.suppress(ControllerTimeout):
                    assert device.read32(4) == 9
                    break

    def test_half_a_reply(self, server: FakeServer) -> None:
        with attach(server, timeout=0.1) as device:
            server.override[REGION_READ] = lambda server, request: server.send(server.message(request)[:10])
            with pytest.raises(ControllerTimeout, match="sent 10 of 16 bytes"):
                device.read32(0)

    def test_replies_with_wrong_ids_or_commands_are_skipped(self, server: FakeServer) -> None:
        with attach(server) as device:

            def answer(server: FakeServer, request: Message) -> None:
                good = server.message(request, request.payload + b"\1\0\0\0")
                msg_id, command, size, flags, error = HEADER.unpack_from(good)
                other_id = HEADER.pack(msg_id ^ 1, command, size, flags, error) + good[16:]
                other_command = HEADER.pack(msg_id, GET_INFO, size, flags, error) + good[16:]
                server.send(other_id, [server.page, server.kick])
                server.send(other_command)
                server.send(HEADER.pack(msg_id ^ 1, command, 16, REPLY | ERROR, errno.EIO))
                server.send(good)

            server.override[REGION_READ] = answer
            assert device.read32(0) == 1
            assert device._channel.stale_replies == 3

    def test_endless_stale_replies(self, server: FakeServer) -> None:
        with attach(server, timeout=0.1) as device:

            def answer(server: FakeServer, request: Message) -> None:
                with contextlib.suppress(OSError):
                    while True:
                        server.send(HEADER.pack(request.msg_id ^ 1, REGION_READ, 16, REPLY, 0))

            server.override[REGION_READ] = answer
            with pytest.raises(ControllerTimeout, match=r"instead of the reply|did not answer"):
                device.read32(0)
            device.close()

    def test_peer_sends_commands(self, server: FakeServer) -> None:
        """DMA_READ from a peer that doesn't map: refused, and the call continues. No reply is
        sent if none is wanted.
        """
        with attach(server) as device:

            def answer(server: FakeServer, request: Message) -> None:
                server.send(HEADER.pack(77, DMA_READ, 32, 0, 0) + bytes(16))
                server.send(HEADER.pack(78, DMA_READ, 32, 0x10, 0) + bytes(16))
                FakeServer.answer(server, request)

            server.override[REGION_READ] = answer
            server.override[-DMA_READ] = lambda server, request: None
            assert device.read32(0) == 0
            device.write32(0, 0)
            assert [m.msg_id for m in server.requests if m.command == -DMA_READ] == [77]

    @pytest.mark.parametrize("size", [0, 15, (1 << 16) + 1, (1 << 32) - 1])
    def test_impossible_sizes(self, server: FakeServer, size: int) -> None:
        with attach(server) as device:
            server.override[REGION_READ] = lambda server, request: server.send(
                HEADER.pack(request.msg_id, REGION_READ, size, REPLY, 0)
            )
            with pytest.raises(ControllerFatal, match=f"a message of {size} bytes"):
                device.read32(0)
            with pytest.raises(ControllerGone, match=f"a message of {size} bytes"):
                device.read32(0)

    def test_unknown_message_type(self, server: FakeServer) -> None:
        with attach(server) as device:
            server.override[REGION_READ] = lambda server, request: server.send(
                HEADER.pack(request.msg_id, REGION_READ, 16, 5, 0)
            )
            with pytest.raises(ControllerFatal, match="unknown type 5"):
                device.read32(0)

    def test_too_many_descriptors(self, server: FakeServer) -> None:
        with attach(server) as device:
            server.override[REGION_READ] = lambda server, request: server.reply(request, b"", [server.page] * 40)
            with pytest.raises(ControllerFatal, match="more than 16 descriptors"):
                device.read32(0)

    @pytest.mark.parametrize("nth", range(24))
    def test_hanging_up_at_every_message(self, nth: int) -> None:
        """Instead of the n-th answer, or after half of it."""
        for partial in (b"", bytes(7), HEADER.pack(0, 0, 64, REPLY, 0) + bytes(20)):
            with FakeServer() as server:
                count = 0

                def answer(server: FakeServer, request: Message, partial: bytes = partial) -> None:
                    nonlocal count
                    count += 1
                    if count > nth:
                        if partial:
                            server.send(partial)
                        server.hang_up()
                    else:
                        FakeServer.answer(server, request)

                server.override = dict.fromkeys(range(1, 14), answer)
                with pytest.raises(ControllerGone, match="closed the connection"):
                    read_for_ever(server)

    def test_a_gone_device_stays_gone(self, server: FakeServer) -> None:
        device = attach(server)
        server.hang_up()
        for _ in range(2):
            with pytest.raises(ControllerGone):
                device.read32(0)
        device.close()
        with pytest.raises(ControllerGone):
            device.read32(0)

    def test_closing_ends_a_call_of_another_thread(self, server: FakeServer) -> None:
        device = attach(server, timeout=30)
        waiting = threading.Event()
        server.override[REGION_READ] = lambda server, request: waiting.set()
        result: list[BaseException] = []

        def call() -> None:
            try:
                device.read32(0)
            except BaseException as error:
                result.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        assert waiting.wait(30)
        started = time.monotonic()
        device.close()
        thread.join(25)
        assert time.monotonic() - started < 25
        assert [type(error) for error in result] == [ControllerGone]

    def test_a_call_waits_for_another_within_its_timeout(self, server: FakeServer) -> None:
        device = attach(server, timeout=0.3)
        waiting = threading.Event()
        server.override[REGION_READ] = lambda server, request: waiting.set()

        def call() -> None:
            with contextlib.suppress(ControllerTimeout):
                device.read32(0)

        thread = threading.Thread(target=call)
        thread.start()
        assert waiting.wait(30)
        with pytest.raises(ControllerTimeout):
            device._channel.call(Command.DEVICE_RESET, timeout=0.05)
        thread.join()
        device.close()
