"""The messages and requirements of other vfio-user clients, replayed against the emulated
controller.

Each class is one client, modelled on its source: SPDK's host driver, cloud-hypervisor's vfio_user
crate, libvfio-user's own tests. QEMU is in test_emulator_qemu.py.
"""

from __future__ import annotations

import errno
import itertools
import json
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from wire import (
    ACQ,
    AER,
    AQA,
    ASQ,
    BAR0,
    BOOL,
    CAP,
    CC,
    CONFIG,
    CREATE_CQ,
    CREATE_SQ,
    CSTS,
    DELETE_CQ,
    DELETE_SQ,
    DMA_MAP,
    DMA_UNMAP,
    ERR,
    EVENTFD,
    GET_FEATURES,
    GET_INFO,
    GET_LOG,
    IDENTIFY,
    IO_FDS,
    IRQ_INFO,
    MASK,
    MSIX,
    NONE,
    READ,
    REGION_INFO,
    REGION_WRITE,
    REQ,
    RESET,
    SET_FEATURES,
    SET_IRQS,
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


class TestSpdk:
    """lib/vfio_user/host, lib/nvme/nvme_vfio_user.c, and the states of nvme_ctrlr.c. It polls and
    uses no interrupts.
    """

    NBYTES = 256 << 20  # one hugetlbfs file, at an IOVA equal to its own virtual address
    IOVA = 0x2000_0020_0000

    @pytest.fixture
    def memory(self) -> Iterator[Memory]:
        with Memory(self.IOVA, self.NBYTES) as memory:
            yield memory

    def setup(self, wire: Wire, memory: Memory) -> mmap.mmap:
        """spdk_vfio_user_setup(): message ids are always 0."""
        reply = wire.call(VERSION, struct.pack("<HH", 0, 1))  # no JSON
        assert reply.size <= 16 + 4096
        capabilities(reply.payload)
        info = wire.call(GET_INFO, struct.pack("<4I", 16, 0, 0, 0)).payload
        assert len(info) == 16, "a longer reply is an error"
        n_regions = struct.unpack("<4I", info)[2]
        assert n_regions == 9
        doorbells = None
        for index in range(n_regions):
            reply = wire.region_info(index, 4096 - 32, 4096 - 32)
            assert (reply.errno, len(reply.payload) <= 4096) == (0, True)
            flags, answered, _, size, offset = struct.unpack_from("<IIIQQ", reply.payload, 4)
            assert answered == index
            if not size or not flags & 4:
                assert not reply.fds
                continue
            (area,) = sparse_areas(reply.payload)
            assert len(reply.fds) == 1
            page = wire.map_page(reply.fds[0], offset + area[0], area[1])
            if index == BAR0:
                assert area == (0x1000, 0x1000)
                doorbells = page
        assert doorbells is not None
        assert wire.call(DMA_MAP, memory.message(), (memory.fd,)).payload == b""
        command_register = int.from_bytes(wire.read(CONFIG, 4, 2), "little") | 0x404
        wire.write(CONFIG, 4, command_register.to_bytes(2, "little"))
        return doorbells

    def enable(self, wire: Wire, memory: Memory, doorbells: mmap.mmap, entries: int = 32) -> Queue:
        def ring(offset: int, value: int) -> None:
            store32(doorbells, offset - 0x1000, value)

        assert wire.get32(VS) == 0x20000
        cap = int.from_bytes(wire.read(BAR0, CAP, 8), "little")
        assert cap & 0xFFFF >= entries - 1
        assert cap >> 24 & 0xFF > 0  # CAP.TO: how long it waits
        assert wire.get32(CC) & 1 == 0
        admin = Queue(memory, 0, entries, ring)
        wire.write(BAR0, ASQ, (memory.iova + admin.sq).to_bytes(8, "little"))
        wire.write(BAR0, ACQ, (memory.iova + admin.cq).to_bytes(8, "little"))
        wire.set32(AQA, (entries - 1) << 16 | entries - 1)
        css = 6 if cap >> 43 & 1 else 0
        wire.set32(CC, 4 << 20 | 6 << 16 | css << 4 | 1)
        wire.wait32(CSTS, 1, 1)
        return admin

    def initialize(self, admin: Queue, memory: Memory) -> int:
        """From NVME_CTRLR_STATE_IDENTIFY to READY; the number of outstanding event requests."""
        at = memory.alloc(4096)
        prp = memory.iova + at
        admin.do(command(IDENTIFY, prp1=prp, cdw={10: 1}))
        cntrltype, aerl = memory.map[at + 111], memory.map[at + 259]
        assert cntrltype == 1
        admin.do(command(SET_FEATURES, cdw={10: 0x0B, 11: 0x1F | 0x100}))  # critical warnings, namespace attributes
        aers = [admin.submit(command(AER)) for _ in range(min(16, aerl + 1))]
        assert admin.do(command(GET_FEATURES, cdw={10: 0x0F})) == 0  # no keep alive: it sends none
        admin.do(
            command(IDENTIFY, prp1=prp, cdw={10: 6, 11: 2 << 24}), status=0x02
        )  # ZNS is tried, Invalid Field expected
        count = admin.do(command(SET_FEATURES, cdw={10: 7, 11: 127 << 16 | 127}))
        assert admin.do(command(GET_FEATURES, cdw={10: 7})) == count
        assert count & 0xFFFF >= 1
        admin.do(command(IDENTIFY, nsid=0, prp1=prp, cdw={10: 2}))
        assert struct.unpack_from("<2I", memory.map, at) == (1, 0)
        admin.do(command(IDENTIFY, nsid=1, prp1=prp, cdw={10: 0}))
        assert struct.unpack_from("<Q", memory.map, at)[0] == (64 << 20) // 512
        admin.do(command(IDENTIFY, nsid=1, prp1=prp, cdw={10: 3}))
        descriptors = bytes(memory.map[at : at + 128])
        assert b"\x04\x01\0\0\0" in descriptors  # CSI: NVM
        admin.do(command(IDENTIFY, nsid=1, prp1=prp, cdw={10: 5}))
        memory.map[at : at + 16] = os.urandom(16)
        admin.do(command(SET_FEATURES, prp1=prp, cdw={10: 0x81, 11: 1}))
        return len(aers)

    def test_identify_tool(self, wire: Wire, memory: Memory) -> None:
        """app/spdk_nvme_identify: log pages, features, reservations."""
        admin = self.enable(wire, memory, self.setup(wire, memory))
        assert self.initialize(admin, memory) == 4
        at = memory.alloc(65 * 4096)
        prp = memory.iova + at
        for page, nbytes in ((1, 64 * 64), (2, 512), (3, 512), (5, 4096), (0, 1024)):
            admin.do(command(GET_LOG, nsid=0xFFFFFFFF, prp1=prp, cdw={10: (nbytes // 4 - 1) << 16 | page}))
        for feature in (1, 2, 4, 7):
            admin.do(command(GET_FEATURES, cdw={10: feature}))
        admin.do(command(GET_FEATURES, nsid=1, cdw={10: 5}))
        for cns in (0x10, 0x13):
            admin.do(command(IDENTIFY, prp1=prp, cdw={10: cns}))

    def test_perf_tool(self, wire: Wire, memory: Memory, served: EmulatedController) -> None:
        """app/spdk_nvme_perf: a polled I/O queue pair, up to 128 KiB by PRP lists, a clean end with
        UNMAP.
        """
        doorbells = self.setup(wire, memory)
        admin = self.enable(wire, memory, doorbells)
        aers = self.initialize(admin, memory)

        def ring(offset: int, value: int) -> None:
            store32(doorbells, offset - 0x1000, value)

        io = Queue(memory, 1, 256, ring)
        admin.do(command(CREATE_CQ, prp1=memory.iova + io.cq, cdw={10: 255 << 16 | 1, 11: 1}))  # no interrupts
        admin.do(command(CREATE_SQ, prp1=memory.iova + io.sq, cdw={10: 255 << 16 | 1, 11: 1 << 16 | 1}))
        buffer, lists = memory.alloc(64 << 10), memory.alloc(4096)
        back = memory.alloc(64 << 10)
        pattern = os.urandom(64 << 10)
        memory.map[buffer : buffer + len(pattern)] = pattern
        for target, opcode in ((buffer, WRITE), (back, READ)):
            struct.pack_into("<15Q", memory.map, lists, *(memory.iova + target + 4096 * page for page in range(1, 16)))
            io.do(command(opcode, nsid=1, prp1=memory.iova + target, prp2=memory.iova + lists, cdw={10: 40, 12: 127}))
        assert memory.map[back : back + len(pattern)] == pattern
        for round_ in range(20):
            cids = {
                io.submit(command(READ, nsid=1, prp1=memory.iova + back, cdw={10: round_, 12: 7})) for _ in range(64)
            }
            done = [io.wait() for _ in cids]
            assert {cid for cid, _, _ in done} == cids
            assert not any(status for _, status, _ in done)
        admin.do(command(DELETE_SQ, cdw={10: 1}))
        admin.do(command(DELETE_CQ, cdw={10: 1}))
        assert admin.completion() is None  # the event requests stay outstanding
        wire.set32(CC, wire.get32(CC) & ~(3 << 14) | 1 << 14)
        wire.wait32(CSTS, 0xC, 8)
        wire.set32(CC, 0)
        wire.wait32(CSTS, 1, 0)
        assert aers == 4
        # The unmap carries the descriptor again, and its reply is ignored.
        unmapped = wire.call(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, memory.iova, memory.nbytes), (memory.fd,))
        assert unmapped.errno == 0
        counters = served.faults.counters()
        assert (counters["fatals"], counters["invalid_doorbells"], counters["shutdowns"]) == (0, 0, 1)

    def test_the_next_process_finds_an_idle_controller(self, wire: Wire, memory: Memory, tmp_path: Path) -> None:
        self.enable(wire, memory, self.setup(wire, memory))
        wire.socket.close()  # killed
        with Memory(self.IOVA + (1 << 30), 16 << 20) as other, Wire(str(tmp_path / "cntrl")) as again:
            admin = self.enable(again, other, self.setup(again, other))
            self.initialize(admin, other)


class TestCloudHypervisor:
    """The vfio_user crate (vfio_user/src/lib.rs): reads exactly what it expects and ignores errors
    until then.
    """

    def exactly(self, wire: Wire, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:
            part = wire.socket.recv(nbytes - len(data))
            assert part
            data += part
        return data

    def send(self, wire: Wire, number: int, code: int, payload: bytes, fds: tuple[int, ...] = ()) -> None:
        wire.send(code, payload, fds, msg_id=number)

    def test_client(self, wire: Wire) -> None:
        numbers = itertools.count()
        text = b'{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}\0'
        self.send(wire, next(numbers), VERSION, struct.pack("<HH", 0, 1) + text)
        version = self.exactly(wire, 20)
        rest = self.exactly(wire, struct.unpack_from("<I", version, 4)[0] - 20)
        # The crate skips unknown fields; known ones must have the right type.
        parsed = json.loads(rest[:-1])
        assert isinstance(parsed, dict)
        assert isinstance(parsed.get("max_msg_fds", 1), int)

        self.send(wire, next(numbers), GET_INFO, struct.pack("<4I", 32, 0, 0, 0))  # argsz with its header
        _, flags, n_regions, _ = struct.unpack_from("<4I", self.exactly(wire, 32), 16)
        assert flags & 2  # PCI
        mapped = {}
        for index in range(n_regions):
            self.send(wire, next(numbers), REGION_INFO, struct.pack("<IIIIQQ", 1024, 0, index, 0, 0, 0))
            head, fds, _, _ = socket.recv_fds(wire.socket, 48, 1)
            wire.fds += fds
            assert len(head) == 48
            size, offset = struct.unpack_from("<QQ", head, 32)
            more = self.exactly(wire, struct.unpack_from("<I", head, 4)[0] - 48)
            if fds:
                mapped[index] = (os.fstat(fds[0]).st_size, size, offset, sparse_areas(head[16:] + more))
        assert mapped == {BAR0: (0x2000, 0x2000, 0, [(0x1000, 0x1000)])}

        with Memory(0x1000_0000, 1 << 20) as memory:
            self.send(wire, next(numbers), DMA_MAP, memory.message(), (memory.fd,))
            assert struct.unpack_from("<III", self.exactly(wire, 16), 4) == (16, 1, 0)
            fds = [os.eventfd(0) for _ in range(VECTORS)]
            wire.fds += fds
            irq = struct.pack("<4I", 16, 0, MSIX, 0)
            self.send(wire, next(numbers), IRQ_INFO, irq)
            assert struct.unpack_from("<4I", self.exactly(wire, 32), 16)[3] == VECTORS
            for action, count, given in ((EVENTFD | TRIGGER, VECTORS, tuple(fds)), (NONE | TRIGGER, 0, ())):
                self.send(wire, next(numbers), SET_IRQS, struct.pack("<5I", 20, action, MSIX, 0, count), given)
                assert struct.unpack_from("<III", self.exactly(wire, 16), 4) == (16, 1, 0)
            access = struct.pack("<QII", 4, CONFIG, 4)
            self.send(wire, next(numbers), REGION_WRITE, access + b"\x06\x04\0\0")
            assert self.exactly(wire, 32)[16:] == access
            self.send(wire, next(numbers), DMA_UNMAP, struct.pack("<IIQQ", 24, 0, memory.iova, memory.nbytes))
            assert struct.unpack_from("<Q", self.exactly(wire, 40), 32)[0] == memory.nbytes
        self.send(wire, next(numbers), RESET, b"")
        assert struct.unpack_from("<III", self.exactly(wire, 16), 4) == (16, 1, 0)
        wire.socket.shutdown(socket.SHUT_RDWR)
        assert wire.socket.recv(16) == b""


class TestLibvfioUser:
    """What libvfio-user's own tests (test/py) assert about a server, as far as it applies to this
    device.
    """

    @pytest.fixture
    def ready(self, wire: Wire) -> Wire:
        capabilities(wire.call(VERSION, struct.pack("<HH", 0, 1) + b'{"capabilities":{"max_msg_fds":8}}\0').payload)
        return wire

    @pytest.mark.parametrize(
        "text", [b"", b"{}\0", b'{ "capabilities": { "max_msg_fds": 8, "max_data_xfer_size": 1048576 } }\0']
    )
    def test_versions(self, wire: Wire, text: bytes) -> None:
        got = capabilities(wire.call(VERSION, struct.pack("<HH", 0, 1) + text).payload)
        assert got["max_msg_fds"] >= 8
        assert got["max_data_xfer_size"] == 1 << 20

    @pytest.mark.parametrize(
        ("code", "payload"), [(VERSION, struct.pack("<HH", 999, 1)), (VERSION, b""), (999, bytes(4))]
    )
    def test_a_bad_first_message_ends_the_connection(self, wire: Wire, code: int, payload: bytes) -> None:
        reply = wire.call(code, payload)
        assert (reply.errno, reply.payload) == (errno.EINVAL, b"")
        assert wire.socket.recv(1) == b""

    @pytest.mark.parametrize(
        ("code", "payload"),
        [
            *(
                (code, struct.pack("<II", 0, 0))
                for code in (GET_INFO, REGION_INFO, IRQ_INFO, SET_IRQS, DMA_MAP, DMA_UNMAP, IO_FDS)
            ),
            *((code, b"") for code in (GET_INFO, REGION_INFO, IRQ_INFO, SET_IRQS, DMA_MAP, DMA_UNMAP, IO_FDS)),
            (GET_INFO, struct.pack("<4I", 8, 0, 0, 0)),
            (REGION_INFO, struct.pack("<IIIIQQ", 8, 0, 1, 0, 0, 0)),
            (REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 9, 0, 0, 0)),
            (IRQ_INFO, struct.pack("<4I", 8, 0, REQ, 0)),
            (IRQ_INFO, struct.pack("<4I", 16, 0, 5, 0)),
            (SET_IRQS, struct.pack("<5I", 3, NONE | TRIGGER, REQ, 0, 0)),
            (DMA_MAP, struct.pack("<IIQQQ", 8, 3, 0, 0x10000, 4096)),
            (DMA_UNMAP, struct.pack("<IIQQ", 8, 0, 0x10000, 4096)),
            (IO_FDS, struct.pack("<4I", 512, 1, BAR0, 0)),
            (IO_FDS, struct.pack("<4I", 15, 0, BAR0, 0)),
            (IO_FDS, struct.pack("<4I", 512, 0, 512, 0)),
        ],
    )
    def test_bad_arguments_are_refused(self, ready: Wire, code: int, payload: bytes) -> None:
        reply = ready.call(code, payload)
        assert (reply.errno, reply.payload) == (errno.EINVAL, b"")
        assert ready.call(GET_INFO, struct.pack("<4I", 16, 0, 0, 0)).errno == 0, "and the connection goes on"

    @pytest.mark.parametrize(
        ("flags", "index", "start", "count", "n_fds", "data"),
        [
            (MASK | UNMASK, MSIX, 0, 0, 0, b""),
            (MASK | NONE | BOOL, MSIX, 0, 0, 0, b""),
            (MASK | NONE, MSIX, VECTORS - 1, 2, 0, b""),
            (MASK | NONE, MSIX, VECTORS + 1, 1, 0, b""),
            (MASK | NONE, ERR, 0, 1, 0, b""),
            (MASK | NONE, REQ, 0, 1, 0, b""),
            (TRIGGER | NONE, ERR, 0, 2, 0, b""),
            (MASK | NONE, MSIX, 1, 0, 0, b""),
            (MASK | NONE, MSIX, 0, 0, 0, b""),
            (TRIGGER | BOOL, MSIX, 0, 0, 0, b""),
            (TRIGGER | BOOL, MSIX, 0, 1, 1, b"\0"),
            (TRIGGER | NONE, MSIX, 0, 1, 1, b""),
            (TRIGGER | EVENTFD, MSIX, 0, 2, 1, b""),
            (TRIGGER | BOOL, MSIX, 0, 2, 0, b"\0"),
        ],
    )
    def test_bad_interrupt_settings(
        self, ready: Wire, flags: int, index: int, start: int, count: int, n_fds: int, data: bytes
    ) -> None:
        fds = [os.eventfd(0) for _ in range(n_fds)]
        ready.fds += fds
        assert ready.set_irqs(flags, index, start, count, fds, data).errno == errno.EINVAL

    def test_triggering_signals_the_eventfds(self, ready: Wire) -> None:
        fds = [os.eventfd(4), os.eventfd(8)]
        ready.fds += fds
        assert ready.set_irqs(TRIGGER | EVENTFD, MSIX, 0, 2, fds).errno == 0
        assert ready.set_irqs(TRIGGER | NONE, MSIX, 1, 1).errno == 0
        assert ready.set_irqs(TRIGGER | BOOL, MSIX, 0, 2, data=b"\0\1").errno == 0
        assert [os.eventfd_read(fd) for fd in fds] == [4, 10]

    def test_unmapping(self, ready: Wire) -> None:
        for number in range(8):
            assert ready.call(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x1000 * number, 0x1000)).errno == 0
        for flags, address, nbytes, expected in (
            (0, 0x10000, 4096, errno.ENOENT),
            (0x4, 0x1000, 4096, errno.ENOTSUP),
            (2, 0x10000, 4096, errno.EINVAL),
            (0, 0, 0x1000, 0),
            (0, 0, 0x1000, errno.ENOENT),
            (2, 0, 0, 0),
            (0, 0x1000, 0x1000, errno.ENOENT),
        ):
            reply = ready.call(DMA_UNMAP, struct.pack("<IIQQ", 24, flags, address, nbytes))
            assert reply.errno == expected
            assert reply.payload == (struct.pack("<IIQQ", 24, flags, address, nbytes) if expected == 0 else b"")
