"""The vfio-user client against a scripted server: bring-up and calls."""

from __future__ import annotations

import errno
import json
import os
import struct
import threading

import pytest
from fake_vfio_user import (
    GET_INFO,
    IO_FDS,
    IRQ_INFO,
    REGION_INFO,
    REGION_READ,
    RESET,
    SET_IRQS,
    VERSION,
    FakeServer,
    Message,
    attach,
)

from nvme_async.device import Device, DeviceIds
from nvme_async.errors import (
    ControllerFatal,
    DeviceError,
)
from nvme_async.native._dma import Pool


@pytest.mark.usefixtures("no_garbage_of_others", "no_descriptor_is_left")
class TestBringUp:
    def test_the_client_reads_the_devices_properties(self, server: FakeServer) -> None:
        with attach(server) as device:
            assert isinstance(device, Device)
            assert device.ids == DeviceIds(0x1B36, 0x0010, 0x1AF4, 0x1100, 0x010802, 2)
            assert (device.n_vectors, device.max_mappings, device.direct) == (9, 64, False)
            assert server.commands()[0] == VERSION
            assert server.config[4:6] == struct.pack("<H", 0x406), "memory, bus master, INTx disabled"
            assert "1b36:0010" in repr(device)
        assert "closed" in repr(device)

    def test_doorbells_are_memory(self, server: FakeServer) -> None:
        with attach(server) as device:
            doorbells = device.doorbells()
            assert doorbells is device.doorbells()
            assert doorbells.mmio is not None
            assert (doorbells.offset, doorbells.mmio.nbytes) == (0, 0x1000)
            doorbells.mmio.write32(doorbells.offset + 8, 0xABCD)
            assert os.pread(server.page, 4, 0x1008) == struct.pack("<I", 0xABCD)
            os.eventfd_write(doorbells.kick_fd, 1)
            assert os.eventfd_read(server.kick) == 1
        doorbells.mmio.write32(0, 7)  # late, and harmless

    def test_peer_without_mappable_doorbells(self, server: FakeServer) -> None:
        server.mappable = False
        with attach(server) as device:
            doorbells = device.doorbells()
            assert (doorbells.mmio, doorbells.offset, doorbells.kick_fd) == (None, 0x1000, -1)
            assert set(device.descriptors()) == {"socket"}
            server.registers = bytearray(0x2000)
            device.write32(0x1004, 5)
            assert server.registers[0x1004] == 5

    def test_peer_without_io_fds(self, server: FakeServer) -> None:
        server.io_fds = False
        with attach(server) as device:
            assert device.doorbells().mmio is not None
            assert device.doorbells().kick_fd == -1

    def test_region_offset_counts(self, server: FakeServer) -> None:
        server.region_offset = 0x3000
        os.truncate(server.page, 0x5000)
        with attach(server) as device:
            mmio = device.doorbells().mmio
            assert mmio is not None
            mmio.write32(0, 1)
            assert os.pread(server.page, 4, 0x4000) == b"\1\0\0\0"

    @pytest.mark.parametrize("text", [None, b"", b"\0", b"{}\0", b'{"capabilities":{}}', b'{"capabilities":7}\0'])
    def test_minimal_version_replies(self, server: FakeServer, text: bytes | None) -> None:
        server.version_json = text
        with attach(server) as device:
            assert device.max_mappings == 64

    def test_capabilities(self, server: FakeServer) -> None:
        server.version_json = json.dumps({"capabilities": {"max_dma_maps": 4096, "max_msg_fds": 2}}).encode()
        with attach(server) as device:
            assert device.max_mappings == 4096

    @pytest.mark.parametrize(
        ("payload", "message"),
        [
            (b"", "only 0 bytes"),
            (struct.pack("<HH", 1, 0), "has version 1.0"),
            (struct.pack("<HH", 0, 2), "has version 0.2"),
            (struct.pack("<HH", 0, 1) + b"{", "isn't JSON"),
            (struct.pack("<HH", 0, 1) + b'{"capabilities":{"max_msg_fds":"x"}}', "max_msg_fds"),
        ],
    )
    def test_bad_version_replies(self, server: FakeServer, payload: bytes, message: str) -> None:
        server.override[VERSION] = lambda server, request: server.reply(request, payload)
        with pytest.raises(ControllerFatal, match=message):
            attach(server)

    @pytest.mark.parametrize(
        ("command", "payload", "message"),
        [
            (GET_INFO, struct.pack("<IIII", 16, 1, 9, 5), "not a PCI device"),
            (GET_INFO, struct.pack("<IIII", 16, 2, 3, 5), "not a PCI device"),
            (GET_INFO, b"1234", "GET_INFO has 4 bytes"),
            (IRQ_INFO, struct.pack("<IIII", 16, 1, 2, 1 << 30), "MSI-X vectors"),
            (IRQ_INFO, b"", "has 0 bytes"),
            (REGION_READ, struct.pack("<QII", 0, 7, 4), "read of 4"),
            (REGION_READ, struct.pack("<QIII", 0, 7, 8, 1), "read of 4"),
            (REGION_INFO, struct.pack("<IIIIQQ", 32, 3, 1, 0, 0x2000, 0), "described region 1"),
            (REGION_INFO, struct.pack("<IIIIQQ", 32, 3, 0, 0, 0x1000, 0), "BAR0 has 0x1000 bytes"),
            (REGION_INFO, struct.pack("<IIIIQQ", 1 << 31, 3, 0, 0, 0x2000, 0), "needs 2147483648 bytes"),
            (REGION_INFO, struct.pack("<IIIIQQ", 64, 0xF, 0, 4, 0x2000, 0), "is outside the reply"),
            (REGION_INFO, struct.pack("<IIIIQQ", 64, 0xF, 0, 32, 0x2000, 0), "is outside the reply"),
            (REGION_INFO, struct.pack("<IIIIQQHHI", 64, 0xF, 0, 32, 0x2000, 0, 9, 1, 32), "is outside the reply"),
            (REGION_INFO, struct.pack("<IIIIQQHHI", 64, 0xF, 0, 32, 0x2000, 0, 1, 1, 0), "is truncated"),
            (
                REGION_INFO,
                struct.pack("<IIIIQQHHIII", 64, 0xF, 0, 32, 0x2000, 0, 1, 1, 0, 9, 0),
                "too short for 9",
            ),
        ],
    )
    def test_invalid_replies_are_refused(self, server: FakeServer, command: int, payload: bytes, message: str) -> None:
        server.override[command] = lambda server, request: server.reply(request, payload, [server.page])
        with pytest.raises((ControllerFatal, DeviceError), match=message):
            attach(server)

    @pytest.mark.parametrize("first_needs", [64, 300])
    def test_argsz_is_raised_when_too_small(self, server: FakeServer, first_needs: int) -> None:
        """The peer requests more room than it uses, with descriptors in the discarded answer."""

        def answer(server: FakeServer, request: Message) -> None:
            argsz, _, index, *_ = struct.unpack("<IIIIQQ", request.payload)
            if argsz < first_needs:
                needed = struct.pack("<IIIIQQ", first_needs, 0xF, index, 0, 0x2000, 0)
                server.reply(request, needed, [server.page, server.kick])
            else:
                FakeServer.answer(server, request)

        server.override[REGION_INFO] = answer
        with attach(server) as device:
            assert device.doorbells().mmio is not None

    def test_wholly_mappable_bar(self, server: FakeServer) -> None:
        """MMAP without capabilities: the whole BAR. Registers go by message nevertheless."""
        info = struct.pack("<IIIIQQ", 32, 7, 0, 0, 0x2000, 0)
        server.override[REGION_INFO] = lambda server, request: server.reply(request, info, [server.page])
        with attach(server) as device:
            mmio = device.doorbells().mmio
            assert mmio is not None
            assert mmio.nbytes == 0x1000

    @pytest.mark.parametrize("areas", [[], [(0, 0x1000)], [(0x1000, 0x9000)], [(0x1800, 0x800)]])
    def test_areas_that_miss_the_doorbells(self, server: FakeServer, areas: list[tuple[int, int]]) -> None:
        info = struct.pack("<IIIIQQ", 256, 0xF, 0, 32, 0x2000, 0) + struct.pack("<HHIII", 1, 1, 0, len(areas), 0)
        for area in areas:
            info += struct.pack("<QQ", *area)
        server.override[REGION_INFO] = lambda server, request: server.reply(request, info, [server.page])
        with attach(server) as device:
            assert device.doorbells().mmio is None

    def test_doorbell_file_too_short(self, server: FakeServer) -> None:
        server.region_offset = 0x8000
        with pytest.raises(DeviceError, match="doorbells cannot be mapped"):
            attach(server)

    @pytest.mark.parametrize(
        ("entry", "expected"),
        [
            (struct.pack("<QQIIIIQQ", 0x1000, 0x1000, 1, 2, 0, 0, 0, 0), True),
            (struct.pack("<QQIIIIQ", 0, 0x2000, 0, 0, 0, 0, 0), True),
            (struct.pack("<QQIIIIQ", 0x1000, 4, 0, 0, 0, 0, 0), False),
            (struct.pack("<QQIIIIQ", 0x1000, 0, 0, 1, 0, 0, 0), False),
            (struct.pack("<QQIIIIQ", 0x1000, 0, 0, 0, 1, 0, 0), False),
            (struct.pack("<QQIIIIQ", 0x1000, 0, 9, 0, 0, 0, 0), False),
            (b"short", False),
            (b"", False),
        ],
    )
    def test_io_fd_entries(self, server: FakeServer, entry: bytes, expected: bool) -> None:
        reply = struct.pack("<IIII", 16 + len(entry), 0, 0, 1) + entry
        server.override[IO_FDS] = lambda server, request: server.reply(request, reply, [server.kick, server.kick])
        with attach(server) as device:
            assert (device.doorbells().kick_fd >= 0) == expected

    def test_no_msix_capability(self, server: FakeServer) -> None:
        server.config[0x34] = 0x40
        server.config[0x41] = 0x40  # and a chain that ends in itself
        with attach(server) as device:
            eventfd = os.eventfd(0)
            device.set_interrupts([eventfd])
            os.close(eventfd)
            assert 0 in server.vectors


@pytest.mark.usefixtures("no_garbage_of_others", "no_descriptor_is_left")
class TestCalls:
    def test_registers(self, server: FakeServer) -> None:
        with attach(server) as device:
            device.write32(0x14, 0x460001)
            device.write64(0x28, 0x1_2345_6789)
            assert server.registers[0x14:0x18] == struct.pack("<I", 0x460001)
            assert device.read32(0x14) == 0x460001
            assert device.read64(0x28) == 0x1_2345_6789
            for offset in (-4, 2, 0x2000, 0x1FFE):
                with pytest.raises(ValueError, match="misaligned or beyond"):
                    device.read32(offset)
            with pytest.raises(ValueError, match="misaligned or beyond"):
                device.write64(4, 0)
            with pytest.raises(OverflowError):
                device.write32(0, 1 << 32)

    def test_mappings(self, server: FakeServer) -> None:
        with attach(server) as device, Pool(1 << 20, iova=1 << 32, hugepages="never") as pool:
            device.map_dma(pool, iova=pool.iova, nbytes=pool.nbytes)
            device.map_dma(pool.fd, iova=0x10000, nbytes=0x2000, file_offset=0x1000)
            inode = os.fstat(pool.fd).st_ino
            assert server.mappings == {1 << 32: (1 << 20, 0, inode), 0x10000: (0x2000, 0x1000, inode)}
            with pytest.raises(DeviceError, match=r"refused DMA_MAP: EEXIST \(File exists\)") as caught:
                device.map_dma(pool, iova=pool.iova, nbytes=pool.nbytes)
            assert caught.value.errno == errno.EEXIST
            with pytest.raises(DeviceError, match="refused DMA_UNMAP: ENOENT"):
                device.unmap_dma(pool.iova, 4096)
            device.unmap_dma(pool.iova, pool.nbytes)
            assert list(server.mappings) == [0x10000]

    @pytest.mark.parametrize(
        ("iova", "nbytes", "offset"),
        [(1, 4096, 0), (0, 100, 0), (0, 4096, 8), (0, 0, 0), ((1 << 64) - 4096, 8192, 0)],
    )
    def test_bad_mappings(self, server: FakeServer, iova: int, nbytes: int, offset: int) -> None:
        with attach(server) as device, pytest.raises(ValueError, match=r"mapping|cannot map"):
            device.map_dma(0, iova=iova, nbytes=nbytes, file_offset=offset)

    def test_bad_descriptor(self, server: FakeServer) -> None:
        with attach(server) as device:
            with pytest.raises(DeviceError, match="DMA_MAP could not be sent"):
                device.map_dma(9999, iova=0, nbytes=4096)
            assert device.read32(0) == 0, "and nothing was sent"

    def test_interrupts(self, server: FakeServer) -> None:
        control = slice(0x52, 0x54)
        eventfds = [os.eventfd(0) for _ in range(9)]

        def vectors() -> dict[int, int]:
            return {vector: inode for vector, (_, inode) in server.vectors.items()}

        def raise_vector(vector: int) -> None:
            os.eventfd_write(server.vectors[vector][0], 1)

        with attach(server) as device:
            enabled_before: list[bool] = []

            def set_irqs(server: FakeServer, request: Message) -> None:
                enabled_before.append(server.config[0x53] & 0x80 != 0)
                FakeServer.answer(server, request)

            server.override[SET_IRQS] = set_irqs
            device.set_interrupts(eventfds)
            assert list(vectors()) == list(range(9))
            assert [len(m.fds) for m in server.requests if m.command == SET_IRQS and m.fds] == [8, 1], (
                "max_msg_fds is 8"
            )
            assert enabled_before == [False, False, False], "the enable bit comes last"
            assert server.config[control] == struct.pack("<H", 0x8000)
            raise_vector(8)
            assert os.eventfd_read(eventfds[8]) == 1
            device.set_interrupts([eventfds[0], None, None, eventfds[3]])
            assert set(vectors()) == {0, 3}
            device.set_interrupts([eventfds[0], None, None, eventfds[3]])
            count = len(server.requests)
            device.set_interrupts([])
            assert vectors() == {}
            assert server.config[control] == b"\0\0"
            assert len(server.requests) == count + 2
            with pytest.raises(ValueError, match="10 interrupts were requested, the device has 9"):
                device.set_interrupts([*eventfds, None])
        for fd in eventfds:
            os.close(fd)

    def test_one_descriptor_per_message_by_default(self, server: FakeServer) -> None:
        server.version_json = None
        eventfd = os.eventfd(0)
        with attach(server) as device:
            device.set_interrupts([eventfd] * 3)
            assert [len(m.fds) for m in server.requests if m.command == SET_IRQS and m.fds] == [1, 1, 1]
        os.close(eventfd)

    def test_reset(self, server: FakeServer) -> None:
        with attach(server) as device:
            server.config[4:6] = b"\0\0"
            device.reset()
            assert RESET in server.commands()
            assert server.config[4:6] == struct.pack("<H", 0x406)

    def test_a_peer_without_reset(self, server: FakeServer) -> None:
        server.override[GET_INFO] = lambda server, request: server.reply(request, struct.pack("<IIII", 16, 2, 9, 5))
        with attach(server) as device:
            device.reset()
            assert RESET not in server.commands()

    @pytest.mark.parametrize("error", [errno.EINVAL, 0, 99999, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
    def test_error_replies(self, server: FakeServer, error: int) -> None:
        with attach(server) as device:
            server.override[REGION_READ] = lambda server, request: server.refuse(request, error)
            with pytest.raises(DeviceError, match="refused REGION_READ") as caught:
                device.read32(0)
            assert caught.value.errno == (error or errno.EIO)
            del server.override[REGION_READ]
            assert device.read32(0) == 0

    def test_several_reads_need_one_wait(self, server: FakeServer) -> None:
        with attach(server) as device:
            server.registers[:0x40] = bytes(range(0x40))
            before = len(server.requests)
            arrived = threading.Event()

            def answer(server: FakeServer, request: Message) -> None:
                if len(server.requests) - before == 3:
                    arrived.set()  # only the last one has arrived here, and nothing has been answered
                    for earlier in server.requests[before:]:
                        FakeServer.answer(server, earlier)

            server.override[REGION_READ] = answer
            assert device.read_many([(0x08, 4), (0, 8), (0x3C, 4)]) == [0x0B0A0908, 0x0706050403020100, 0x3F3E3D3C]
            assert arrived.is_set()
            del server.override[REGION_READ]
            for bad in ((2, 4), (4, 8), (0x2000, 4)):
                with pytest.raises(ValueError, match="misaligned or beyond"):
                    device.read_many([(0, 4), bad])
            assert len(server.requests) - before == 3, "nothing was sent"
            assert device.read_many([]) == []
            many = [(4 * (number % 16), 4) for number in range(100)]
            assert device.read_many(many) == [int.from_bytes(server.registers[at : at + 4], "little") for at, _ in many]

    def test_one_refused_read_of_several_leaves_no_stale_replies(self, server: FakeServer) -> None:
        with attach(server) as device:

            def answer(server: FakeServer, request: Message) -> None:
                offset = int.from_bytes(request.payload[:8], "little")
                if offset in (4, 8):
                    server.refuse(request, errno.EINVAL if offset == 4 else errno.EPERM)
                else:
                    FakeServer.answer(server, request)

            server.override[REGION_READ] = answer
            with pytest.raises(DeviceError, match="refused REGION_READ: EINVAL"):
                device.read_many([(0, 4), (4, 4), (8, 4), (12, 4)])
            server.registers[0] = 7
            assert device.read32(0) == 7
            assert device._channel.stale_replies == 0

    def test_calls_from_many_threads(self, server: FakeServer) -> None:
        failures: list[BaseException] = []
        with attach(server) as device:

            def work(number: int) -> None:
                try:
                    for i in range(50):
                        device.write32(number * 4, i)
                        assert device.read32(number * 4) == i
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert failures == []
