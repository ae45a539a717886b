"""The vfio-user server of the emulated controller, message by message."""

from __future__ import annotations

import errno
import json
import os
import struct

import pytest
from raw_vfio_user import (
    BAR0,
    CONFIG,
    CSTS,
    EVENTFD,
    FEATURE,
    GET_INFO,
    HEADER,
    IRQ_INFO,
    MSIX,
    MSIX_BAR,
    NO_REPLY,
    NONE,
    REGION_IO_FDS,
    REGION_WRITE,
    RESET,
    SET_IRQS,
    TRIGGER,
    VERSION,
    WRITE_MULTI,
    Admin,
    RawClient,
    count,
    eventfds,
    refused_with,
)


class TestVersion:
    def test_without_json(self, controller):
        with RawClient(controller.connect(), handshake=False) as client:
            answer = client.version()
            assert struct.unpack_from("<HH", answer) == (0, 1)
            assert answer[-1:] == b"\0"
            assert json.loads(answer[4:-1]) == {
                "capabilities": {
                    "max_msg_fds": 16,
                    "max_data_xfer_size": 1 << 20,
                    "max_dma_maps": 4096,
                    "pgsizes": 4096,
                }
            }

    def test_capabilities_are_a_subset_of_those_proposed(self, controller):
        with RawClient(controller.connect(), handshake=False) as client:
            answer = client.version(b'{"capabilities": {"write_multiple": true, "max_msg_fds": 8}}\0')
            assert json.loads(answer[4:-1])["capabilities"]["write_multiple"] is True
            assert "migration" not in json.loads(answer[4:-1])["capabilities"]

    @pytest.mark.parametrize("text", [b"{", b"\0" * 7, b"\xff" * 100, b'"write_multiple"'])
    def test_invalid_json_is_tolerated(self, controller, text):
        with RawClient(controller.connect(), handshake=False) as client:
            assert b"write_multiple" not in client.version(text)

    def test_minor_is_never_above_the_proposed_one(self, controller):
        with RawClient(controller.connect(), handshake=False) as client:
            assert struct.unpack_from("<HH", client.call(VERSION, struct.pack("<HH", 0, 0))) == (0, 0)

    @pytest.mark.parametrize("payload", [b"", b"\0\0", struct.pack("<HH", 1, 0)])
    def test_an_incompatible_version_ends_the_connection(self, controller, payload):
        with RawClient(controller.connect(), handshake=False) as client:
            with refused_with(errno.EINVAL):
                client.call(VERSION, payload)
            assert client.closed_by_peer()

    def test_version_must_be_the_first_message(self, controller):
        with RawClient(controller.connect(), handshake=False) as client:
            with refused_with(errno.EINVAL):
                client.call(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
            assert client.closed_by_peer()

    def test_version_is_accepted_only_once(self, client):
        with refused_with(errno.EINVAL):
            client.version()
        client.region_info(0)


class TestInfo:
    def test_device(self, client):
        assert struct.unpack("<IIII", client.call(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))) == (
            16,
            3,
            9,
            5,
        )
        with refused_with(errno.EINVAL):
            client.call(GET_INFO, struct.pack("<IIII", 12, 0, 0, 0))

    def test_regions(self, client):
        sizes = {BAR0: 0x2000, MSIX_BAR: 0x2000, CONFIG: 4096}
        for index in range(9):
            info = client.region_info(index, argsz=0xFE0, pad=0xFE0)
            argsz, flags, answered, _, size, _ = struct.unpack_from("<IIIIQQ", info)
            assert answered == index
            assert argsz == len(info)
            assert size == sizes.get(index, 0)
            assert bool(flags & 3) == (index in sizes)
        for index in (9, 100, 0xFFFFFFFF):
            with refused_with(errno.EINVAL):
                client.region_info(index)

    @pytest.mark.parametrize("argsz", [64, 80, 0xFE0, 0xFFFFFFFF])
    def test_doorbells_are_a_sparse_area(self, client, argsz):
        info = client.region_info(BAR0, argsz=argsz)
        assert struct.unpack_from("<IIIIQ", info) == (64, 0xF, 0, 32, 0x2000)
        assert struct.unpack_from("<HHIIIQQ", info, 32) == (1, 1, 0, 1, 0, 0x1000, 0x1000)
        assert len(client.received) == 1

    @pytest.mark.parametrize("argsz", [32, 63])
    def test_argsz_too_small_for_the_area_returns_the_size(self, client, argsz):
        info = client.region_info(BAR0, argsz=argsz)
        assert len(info) == 32
        assert struct.unpack_from("<IIIIQ", info) == (64, 0x7, 0, 0, 0x2000)  # no FLAG_CAPS without an offset
        assert client.received == []

    @pytest.mark.parametrize("argsz", [0, 31])
    def test_argsz_too_small_for_anything(self, client, argsz):
        with refused_with(errno.EINVAL):
            client.region_info(BAR0, argsz=argsz)

    def test_doorbell_eventfd(self, client):
        answer = client.call(REGION_IO_FDS, struct.pack("<IIII", 16, 0, BAR0, 0))
        assert struct.unpack("<IIII", answer) == (56, 0, BAR0, 1)
        assert client.received == []
        answer = client.call(REGION_IO_FDS, struct.pack("<IIII", 56, 0, BAR0, 0))
        assert struct.unpack_from("<IIII", answer) == (56, 0, BAR0, 1)
        assert struct.unpack_from("<QQIIIIQ", answer, 16) == (0x1000, 0, 0, 0, 0, 0, 0)
        (fd,) = client.received
        assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"

    def test_other_regions_have_no_eventfd(self, client):
        answer = client.call(REGION_IO_FDS, struct.pack("<IIII", 56, 0, CONFIG, 0))
        assert struct.unpack("<IIII", answer) == (16, 0, CONFIG, 0)
        for argsz, flags, index in ((15, 0, 0), (56, 1, 0), (56, 0, 9)):
            with refused_with(errno.EINVAL):
                client.call(REGION_IO_FDS, struct.pack("<IIII", argsz, flags, index, 0))

    def test_interrupts(self, client):
        counts = []
        for index in range(5):
            argsz, _, answered, n = struct.unpack("<IIII", client.call(IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0)))
            assert (argsz, answered) == (16, index)
            counts.append(n)
        assert counts == [1, 0, 65, 1, 1]
        with refused_with(errno.EINVAL):
            client.call(IRQ_INFO, struct.pack("<IIII", 16, 0, 5, 0))


class TestMessages:
    def test_no_reply_suppresses_error_replies(self, client):
        head = struct.pack("<QII", 4, CONFIG, 2)
        client.send(REGION_WRITE, head + b"\x06\x04", flags=NO_REPLY)
        client.send(REGION_WRITE, head + b"too long", flags=NO_REPLY)
        client.send(99, flags=NO_REPLY)
        assert client.read(CONFIG, 4, 2) == b"\x06\x04"

    @pytest.mark.parametrize("command", [0, 11, 12, 14, 15, FEATURE, 17, 18, 99, 0xFFFF])
    def test_unknown_commands_are_refused(self, client, command):
        with refused_with(errno.ENOTSUP):
            client.call(command, bytes(64))
        client.region_info(0)

    def test_pipelined_commands_are_answered_in_order(self, client):
        with eventfds(1) as (fd,):
            payloads = [
                (GET_INFO, struct.pack("<IIII", 16, 0, 0, 0), ()),
                (SET_IRQS, struct.pack("<IIIII", 20, EVENTFD | TRIGGER, MSIX, 3, 1), (fd,)),
                (SET_IRQS, struct.pack("<IIIII", 20, NONE | TRIGGER, MSIX, 3, 1), ()),
            ] * 20
            for client.msg_id, (command, payload, fds) in enumerate(payloads):
                client.send(command, payload, fds)
            for msg_id, (command, _, _) in enumerate(payloads):
                assert client.receive()[:4] == (msg_id, command, 1, 0)
            assert count(fd) == 20

    def test_a_message_may_arrive_in_pieces(self, client):
        message = HEADER.pack(7, GET_INFO, 32, 0, 0) + struct.pack("<IIII", 16, 0, 0, 0)
        for byte in message:
            client.sock.send(bytes([byte]))
        assert client.receive()[0] == 7

    def test_region_write_multi(self, controller):
        with RawClient(controller.connect(), handshake=False) as client:
            client.version(b'{"capabilities":{"write_multiple":true}}\0')
            writes = [(CONFIG, 4, b"\x06\x00"), (CONFIG, 0x3C, b"\x09"), (MSIX_BAR, 0, b"12345678")]
            array = b"".join(struct.pack("<QII8s", at, region, len(data), data) for region, at, data in writes)
            assert client.call(WRITE_MULTI, struct.pack("<Q", 3) + array) == struct.pack("<Q", 3)
            assert client.read(CONFIG, 0x3C, 1) == b"\x09"
            assert client.read(MSIX_BAR, 0, 8) == b"12345678"
            bad = array + struct.pack("<QII8s", 0, 1, 4, b"")
            assert client.call(WRITE_MULTI, struct.pack("<Q", 4) + bad) == struct.pack("<Q", 3)
            for n in (0, 2, 4, 1 << 61):
                with refused_with(errno.EINVAL):
                    client.call(WRITE_MULTI, struct.pack("<Q", n) + array)


class TestConfigSpace:
    def test_it_is_an_nvme_controller(self, client):
        assert client.read(CONFIG, 8, 4)[1:] == bytes([0x02, 0x08, 0x01])
        assert client.read(CONFIG, 0x0E, 1) == b"\0"

    def test_bars_report_their_size(self, client):
        for bar, size in ((0, 0x2000), (4, 0x2000)):
            client.write(CONFIG, 0x10 + 4 * bar, b"\xff" * 8)
            (value,) = struct.unpack("<Q", client.read(CONFIG, 0x10 + 4 * bar, 8))
            assert value & 0xF == 4
            assert (1 << 64) - (value & ~0xF) == size
        for bar in (2, 3):
            client.write(CONFIG, 0x10 + 4 * bar, b"\xff" * 4)
            assert client.read(CONFIG, 0x10 + 4 * bar, 4) == bytes(4)

    def test_command_register(self, client):
        client.write(CONFIG, 4, b"\xff\xff")
        assert struct.unpack("<H", client.read(CONFIG, 4, 2)) == (0x547,)
        client.write(CONFIG, 0, b"\xff" * 4)
        assert client.read(CONFIG, 2, 2) == struct.pack("<H", 1)

    def test_capabilities(self, client):
        assert client.read(CONFIG, 6, 1)[0] & 0x10
        found, at = {}, client.read(CONFIG, 0x34, 1)[0]
        while at:
            assert len(found) < 10
            ident, following = client.read(CONFIG, at, 2)
            found[ident] = at
            at = following
        assert set(found) == {0x01, 0x11, 0x10}
        control, table, pba = struct.unpack("<HII", client.read(CONFIG, found[0x11] + 2, 10))
        assert control == 64
        assert (table & 7, pba & 7) == (MSIX_BAR, MSIX_BAR)
        assert (table & ~7) + 65 * 16 <= pba & ~7
        client.write(CONFIG, found[0x11] + 2, b"\x00\x80")
        assert struct.unpack("<H", client.read(CONFIG, found[0x11] + 2, 2)) == (0x8040,)

    def test_function_level_reset(self, client):
        client.write(CONFIG, 4, b"\x06\x04")
        (control,) = struct.unpack("<H", client.read(CONFIG, 0x68, 2))
        client.write(CONFIG, 0x68, struct.pack("<H", control | 0x8000))
        assert client.read(CONFIG, 4, 2) == b"\0\0"
        assert struct.unpack("<H", client.read(CONFIG, 0x68, 2)) == (control,)

    def test_extended_space_has_a_serial_number_and_nothing_else(self, client):
        space = client.read(CONFIG, 0x100, 4096 - 0x100)
        assert bytes(space[:4]) == bytes([0x03, 0x00, 0x01, 0x00])  # Device Serial Number, version 1, the last
        assert any(space[4:12])
        assert not any(space[12:])
        client.write(CONFIG, 0x100, bytes(12))
        assert client.read(CONFIG, 0x100, 12) == space[:12]
        client.write(CONFIG, 0x100, b"1234")
        assert client.read(CONFIG, 0xFE, 8) == bytes(2) + space[:6]
        for offset, n in ((4096, 1), (4093, 4), (1 << 63, 4)):
            with refused_with(errno.EINVAL):
                client.read(CONFIG, offset, n)


class TestRegisters:
    def test_widths_and_alignment(self, client):
        assert client.reg64(0) & 0xFFFFFFFF == client.reg32(0)
        for offset, n in ((0, 1), (0, 2), (0, 16), (2, 4), (4, 8), (0, 0), (0x2000, 4), (1 << 40, 4)):
            with refused_with(errno.EINVAL):
                client.read(BAR0, offset, n)
            with refused_with(errno.EINVAL):
                client.write(BAR0, offset, bytes(n))

    def test_absent_regions_cannot_be_accessed(self, client):
        for region in (1, 2, 3, 5, 6, 8, 9, 1000):
            with refused_with(errno.EINVAL):
                client.read(region, 0, 4)

    def test_msix_table_is_memory_and_pba_is_not(self, client):
        client.write(MSIX_BAR, 16 * 64, bytes(range(16)))
        assert client.read(MSIX_BAR, 16 * 64, 16) == bytes(range(16))
        client.write(MSIX_BAR, 0x1000, b"\xff" * 16)
        assert client.read(MSIX_BAR, 0x1000, 32) == bytes(32)

    def test_an_access_above_max_data_xfer_size(self, client):
        with refused_with(errno.EINVAL):
            client.read(CONFIG, 0, (1 << 20) + 1)
        assert client.read(CONFIG, 8, 1)

    def test_reset(self, client):
        admin = Admin(client)
        client.call(RESET)
        assert client.reg32(CSTS) & 1 == 0
        admin.enable()
        assert len(admin.identify()) == 4096
