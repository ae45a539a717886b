"""QEMU's vfio-user-pci with a Linux guest, replayed against the emulated controller: messages,
registers, doorbells.

hw/vfio-user/{proxy,container,device,pci}.c; the order is a recording of QEMU 11.1.3 booting Linux
6.1, whose nvme_pci_enable() and nvme_reset_work() follow. The real ones are in tests/vm (make
test-interop).
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import struct
import time
from collections.abc import Iterator

import pytest
from wire import (
    ACQ,
    AER,
    AQA,
    ASQ,
    BAR0,
    CAP,
    CC,
    CONFIG,
    CREATE_CQ,
    CREATE_SQ,
    CSTS,
    DBBUF,
    DELETE_CQ,
    DELETE_SQ,
    DMA_MAP,
    DMA_UNMAP,
    ERR,
    EVENTFD,
    GET_INFO,
    GET_LOG,
    IDENTIFY,
    INTX,
    IRQ_INFO,
    MASK,
    MSI,
    MSIX,
    MSIX_BAR,
    NONE,
    READ,
    REGION_INFO,
    REQ,
    RESET,
    SET_FEATURES,
    TRIGGER,
    UNMASK,
    VECTORS,
    VERSION,
    VS,
    WRITE,
    Memory,
    Queue,
    Wire,
    capabilities,
    command,
    sparse_areas,
    store32,
)

from nvme_async.emulator import EmulatedController

MAX_XFER_LIMIT = 1 << 20  # QEMU's VFIO_USER_DEF_MAX_XFER


class TestQemu:
    """hw/vfio-user/{proxy,container,device,pci}.c; the order is a recording of QEMU 11.1.3 booting
    Linux 6.1.
    """

    CAPABILITIES = (
        b'{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576,'
        b' "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}\0'
    )
    RAM = 64 << 20

    @pytest.fixture
    def ram(self) -> Iterator[Memory]:
        with Memory(0, self.RAM) as memory:
            yield memory

    @staticmethod
    def ask(wire: Wire, code: int, payload: bytes = b"", fds: tuple[int, ...] = (), room: int = 0) -> bytes:
        """vfio_user_send_wait(): a reply longer than `room`, or than the request without one, drops
        the connection.
        """
        reply = wire.call(code, payload, fds, msg_id=next(TestQemu.ids))
        assert reply.errno == 0
        assert reply.size <= max(room, 16 + len(payload)) if room == 0 else reply.size <= room
        return reply.payload

    ids = itertools.cycle(range(1 << 16))

    def negotiate(self, wire: Wire) -> None:
        got = capabilities(wire.call(VERSION, struct.pack("<HH", 0, 0) + self.CAPABILITIES).payload, minor=0)
        # proxy.c: "malformed", "too small" or "too large" end it.
        assert 0 < got["max_msg_fds"] <= 16
        assert 0 < got["max_data_xfer_size"] <= 8 * MAX_XFER_LIMIT
        assert got["pgsizes"] & 4095 == 0
        assert got["pgsizes"] != 0
        assert 0 < got["max_dma_maps"] <= 65535

    def realize(self, wire: Wire, ram: Memory) -> mmap.mmap:
        """Everything up to the first instruction of the guest; the doorbell page."""
        self.negotiate(wire)
        assert self.ask(wire, DMA_MAP, ram.message(), (ram.fd,)) == b""
        # The firmware: memory without a descriptor, which the server can't access.
        assert self.ask(wire, DMA_MAP, struct.pack("<IIQQQ", 32, 1, 0, 0xFFFC0000, 0x40000)) == b""
        info = self.ask(wire, GET_INFO, struct.pack("<4I", 16, 0, 0, 0))
        assert struct.unpack("<4I", info) == (16, 0x3, 9, 5)
        page = self.regions(wire)
        self.interrupts(wire)
        return page

    def regions(self, wire: Wire) -> mmap.mmap:
        # The first request has no room for capabilities; FLAG_CAPS without a valid offset is
        # refused.
        first = self.ask(wire, REGION_INFO, struct.pack("<IIIIQQ", 32, 0, BAR0, 0, 0, 0), room=48)
        argsz, flags, index, cap_offset, size, offset = struct.unpack("<IIIIQQ", first)
        assert (flags & 7, flags & 8, index, cap_offset, size, offset) == (7, 0, 0, 0, 0x2000, 0)
        assert argsz > 32
        reply = wire.call(REGION_INFO, struct.pack("<IIIIQQ", argsz, 0, BAR0, 0, 0, 0), msg_id=next(self.ids))
        assert reply.size <= argsz + 16
        assert struct.unpack_from("<I", reply.payload) == (argsz,), "or it would ask for ever"
        assert sparse_areas(reply.payload) == [(0x1000, 0x1000)]
        (fd,) = reply.fds
        assert os.fstat(fd).st_size >= 0x2000
        for index, (flags, size) in {
            1: (0, 0),
            2: (0, 0),
            3: (0, 0),
            4: (3, 0x2000),
            5: (0, 0),
            6: (0, 0),
            7: (3, 0x1000),
            8: (0, 0),
        }.items():
            info = self.ask(wire, REGION_INFO, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0), room=48)
            assert struct.unpack("<IIIIQQ", info) == (32, flags, index, 0, size, 0)
        return wire.map_page(fd, 0x1000, 0x1000)

    def interrupts(self, wire: Wire) -> None:
        for index, flags, count in ((ERR, 9, 1), (MSIX, 3, VECTORS), (INTX, 7, 1), (REQ, 9, 1), (MSI, 0, 0)):
            info = self.ask(wire, IRQ_INFO, struct.pack("<4I", 16, 0, index, 0))
            assert struct.unpack("<4I", info) == (16, flags, index, count)

    def test_realize_and_configuration(self, wire: Wire, ram: Memory) -> None:
        self.realize(wire, ram)
        config = wire.read(CONFIG, 0, 4096)  # all of it in one read
        assert struct.unpack_from("<H", config, 0x0E)[0] & 0x7F == 0  # a type 0 header
        assert config[0x09:0x0C] == b"\x02\x08\x01"
        assert struct.unpack_from("<H", config, 6)[0] & 0x10  # a list of capabilities
        chain = []
        at = config[0x34]
        while at:
            assert at >= 0x40
            assert at % 4 == 0
            chain.append((config[at], at))
            at = config[at + 1]
        assert sorted(identity for identity, _ in chain) == [0x01, 0x10, 0x11]
        msix = dict(chain)[0x11]
        control, table, pending = struct.unpack_from("<HII", config, msix + 2)
        assert control & 0x7FF == VECTORS - 1
        assert (table & 7, table & ~7, pending & 7, pending & ~7) == (MSIX_BAR, 0, MSIX_BAR, 0x1000)
        # QEMU tries the expansion ROM, which doesn't exist; it sizes the BARs, 64 bits each.
        wire.write(CONFIG, 0x30, b"\x00\xf8\xff\xff")
        assert wire.read(CONFIG, 0x30, 4) == bytes(4)
        for bar, size in ((0x10, 0x2000), (0x20, 0x2000)):
            wire.write(CONFIG, bar, b"\xff" * 4)
            wire.write(CONFIG, bar + 4, b"\xff" * 4)
            value = int.from_bytes(wire.read(CONFIG, bar, 8), "little")
            assert value & 0xF == 4
            assert (~(value & ~0xF) & (1 << 64) - 1) + 1 == size
        # After a reset it zeroes each BAR separately.
        for bar in range(0x10, 0x28, 4):
            wire.write(CONFIG, bar, bytes(4))
        assert wire.read(CONFIG, 0x10, 8) == b"\x04" + bytes(7)

    def test_forms_of_set_irqs(self, wire: Wire, ram: Memory) -> None:
        self.realize(wire, ram)
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        wire.fds += fds
        for flags, index, start, count, given in (
            (EVENTFD | TRIGGER, INTX, 0, 1, fds[:1]),  # at realize
            (EVENTFD | TRIGGER, ERR, 0, 1, fds[1:2]),
            (EVENTFD | TRIGGER, REQ, 0, 1, fds[2:3]),
            (NONE | TRIGGER, INTX, 0, 0, ()),  # off, before a reset
            (EVENTFD | TRIGGER, INTX, 0, 1, fds[:1]),
            (NONE | MASK, INTX, 0, 1, ()),
            (NONE | UNMASK, INTX, 0, 1, ()),  # at the end of an interrupt
            (NONE | TRIGGER, INTX, 0, 0, ()),
            (EVENTFD | TRIGGER, MSIX, 0, 1, ()),  # MSI-X is enabled: vector 0 without an eventfd yet
            (EVENTFD | TRIGGER, MSIX, 0, 1, fds[:1]),
            (EVENTFD | TRIGGER, MSIX, 1, 2, fds[1:3]),
            (EVENTFD | TRIGGER, MSIX, 0, VECTORS, ()),  # an eventfd of -1 for each
            (NONE | TRIGGER, MSIX, 0, 0, ()),
        ):
            reply = wire.set_irqs(flags, index, start, count, given)
            assert (reply.errno, reply.payload) == (0, b"")

    def test_reset_and_remapped_memory(self, wire: Wire, ram: Memory) -> None:
        """The firmware opens and closes holes in low memory: everything is unmapped and remapped at
        once, without waiting.
        """
        self.realize(wire, ram)
        assert self.ask(wire, RESET) == b""
        low, hole = 0xC0000, 0xE0000
        messages = [
            (DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, self.RAM), ()),
            (DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, low), (ram.fd,)),
            (DMA_MAP, struct.pack("<IIQQQ", 32, 1, 0, low, hole - low), ()),
            (DMA_MAP, struct.pack("<IIQQQ", 32, 1, hole, hole, 0x100000 - hole), (ram.fd,)),
            (DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0x100000, 0x100000, self.RAM - 0x100000), (ram.fd,)),
        ]
        for number, (code, payload, fds) in enumerate(messages):
            wire.send(code, payload, fds, msg_id=100 + number)
        for number, (code, payload, _) in enumerate(messages):
            reply = wire.receive()
            assert (reply.msg_id, reply.command, reply.errno) == (100 + number, code, 0)
            assert reply.payload == (payload if code == DMA_UNMAP else b"")
        # A single unmap must name exactly what was mapped; with FLAG_ALL, nothing.
        assert wire.call(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, self.RAM)).errno == errno.ENOENT
        assert wire.call(DMA_UNMAP, struct.pack("<IIQQ", 24, 2, 0, 0)).errno == 0
        assert self.ask(wire, DMA_MAP, ram.message(), (ram.fd,)) == b""

    def linux(self, wire: Wire, ram: Memory, page: mmap.mmap, dbbuf: bool = False) -> tuple[Queue, Queue, list[int]]:
        """nvme_pci_enable() and nvme_reset_work() of Linux 6.1, with QEMU's messages between: admin
        and I/O queue, eventfds.

        Doorbells are the guest's stores to the page; no message announces them.
        """
        ram.alloc(1 << 20)
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        wire.fds += fds
        wire.write(CONFIG, 0x04, b"\x07\x05")  # memory, bus master, INTx disable
        wire.write(CONFIG, 0x52, (VECTORS - 1 | 0x8000).to_bytes(2, "little"))
        assert wire.set_irqs(EVENTFD | TRIGGER, MSIX, 0, 1).errno == 0
        assert wire.get32(CSTS) == 0  # not all ones: the device is there
        cap = int.from_bytes(wire.read(BAR0, CAP, 4) + wire.read(BAR0, CAP + 4, 4), "little")
        assert wire.get32(VS) == 0x20000
        assert (cap >> 32 & 0xF, cap >> 48 & 0xF) == (0, 0)  # DSTRD, MPSMIN
        assert cap >> 37 & 1

        def store(offset: int, value: int) -> None:
            store32(page, offset - 0x1000, value)

        admin = Queue(ram, 0, 32, store)
        wire.set32(CC, 0)
        wire.wait32(CSTS, 1, 0)
        wire.set32(AQA, 31 << 16 | 31)
        for register, offset in ((ASQ, admin.sq), (ACQ, admin.cq)):
            wire.set32(register, offset)
            wire.set32(register + 4, 0)
        wire.set32(CC, 0x460060)  # configured first, enabled by a separate write
        assert wire.get32(CC) == 0x460060
        assert wire.get32(0x68) & 0xFFFF > 0  # CRTO, because CAP.CRMS is set
        wire.set32(CC, 0x460061)
        wire.wait32(CSTS, 3, 1)
        assert wire.set_irqs(EVENTFD | TRIGGER, MSIX, 0, 1, fds[:1]).errno == 0

        data = ram.alloc(4096)
        admin.do(command(IDENTIFY, prp1=data, cdw={10: 1}))
        oacs, oncs = struct.unpack_from("<H", ram.map, data + 256)[0], struct.unpack_from("<H", ram.map, data + 520)[0]
        assert oacs & 0x100
        for page_id in (5, 2):  # Commands Supported and Effects, then SMART for the hwmon interface
            admin.do(command(GET_LOG, nsid=0xFFFFFFFF, prp1=data, cdw={10: (4096 // 4 - 1) << 16 | page_id}))
        if oncs & 0x40:
            struct.pack_into("<Q", ram.map, data, int(time.time() * 1000))
            admin.do(command(SET_FEATURES, prp1=data, cdw={10: 0x0E}))
        admin.do(command(IDENTIFY, prp1=data, cdw={10: 6}))  # WZSL, DMRL and other limits
        buffers = ram.alloc(2 * 4096)
        if dbbuf:
            admin.do(command(DBBUF, prp1=buffers, prp2=buffers + 4096))
        count = admin.do(command(SET_FEATURES, cdw={10: 7, 11: 0x10001}))
        assert min(count & 0xFFFF, count >> 16) >= 1

        def ring_shadow(offset: int, value: int) -> None:
            """nvme_dbbuf_update_and_check_event()."""
            index = offset - 0x1000
            (old,) = struct.unpack_from("<I", ram.map, buffers + index)
            store32(ram.map, buffers + index, value)
            (event,) = struct.unpack_from("<I", ram.map, buffers + 4096 + index)
            if (value - event - 1 & 0xFFFF) < (value - old & 0xFFFF):
                store(offset, value)

        io = Queue(ram, 1, 64, ring_shadow if dbbuf else store)
        assert wire.set_irqs(EVENTFD | TRIGGER, MSIX, 1, 1, fds[1:]).errno == 0
        admin.do(command(CREATE_CQ, prp1=io.cq, cdw={10: 63 << 16 | 1, 11: 1 << 16 | 3}))
        admin.do(command(CREATE_SQ, prp1=io.sq, cdw={10: 63 << 16 | 1, 11: 1 << 16 | 1}))
        admin.do(command(SET_FEATURES, cdw={10: 0x0B, 11: 0x100}))
        admin.submit(command(AER))
        for cns, nsid in ((2, 0), (3, 1), (0, 1), (8, 1), (5, 1)):
            admin.do(command(IDENTIFY, nsid=nsid, prp1=data, cdw={10: cns}))
        return admin, io, fds

    @pytest.mark.parametrize("dbbuf", [False, True], ids=["doorbells", "shadow-doorbells"])
    def test_a_linux_guest_is_served_without_kicks(
        self, wire: Wire, ram: Memory, served: EmulatedController, dbbuf: bool
    ) -> None:
        page = self.realize(wire, ram)
        _, io, fds = self.linux(wire, ram, page, dbbuf)
        data = ram.alloc(64 * 4096)
        times = []
        for number in range(12):
            time.sleep(0.05 if number else 1.2)
            begin = time.monotonic()
            io.do(command(READ, nsid=1, prp1=data, cdw={10: number, 12: 0}))
            times.append(time.monotonic() - begin)
        # Sleeps are at most 2 ms; the rest is due to this machine, which may be busy.
        assert min(times) < 0.1, times
        assert os.eventfd_read(fds[1]) >= 1
        for number in range(300):  # round the ring several times, many at once
            io.submit(command(WRITE, nsid=1, prp1=data + number % 64 * 4096, cdw={10: 8 * number, 12: 7}))
            if number % 20 == 19:
                assert all(io.wait()[1] == 0 for _ in range(20))
        assert served.faults.counters()["invalid_doorbells"] == 0

        time.sleep(1)
        begin, before = time.monotonic(), served.reactor_stats()["sleeps"]
        time.sleep(0.5)
        naps = served.reactor_stats()["sleeps"] - before
        assert 0 < naps < 520 * (time.monotonic() - begin), "naps of 2 ms, of some 20 us of processor time each"

    def test_shutdown_reset_and_a_second_boot(self, wire: Wire, ram: Memory) -> None:
        page = self.realize(wire, ram)
        admin, io, _ = self.linux(wire, ram, page)
        admin.do(command(DELETE_SQ, cdw={10: io.qid}))
        admin.do(command(DELETE_CQ, cdw={10: io.qid}))
        wire.set32(CC, 0x460061 | 1 << 14)
        wire.wait32(CSTS, 0xC, 8)
        assert wire.set_irqs(NONE | TRIGGER, MSIX, 0, 0).errno == 0
        assert self.ask(wire, RESET) == b""
        assert wire.get32(CC) == 0
        assert wire.get32(CSTS) == 0
        self.linux(wire, ram, page)
