"""The emulated controller's vfio-user server: interrupts, mappings, and every way to ring it."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import struct

import pytest
from raw_vfio_user import (
    BOOL,
    CONFIG,
    CSTS,
    DMA_MAP,
    ERR,
    EVENTFD,
    INTX,
    MASK,
    MSI,
    MSIX,
    MSIX_BAR,
    NONE,
    TRIGGER,
    UNMASK,
    Admin,
    RawClient,
    Refused,
    count,
    eventfds,
    refused_with,
)

INTMS, INTMC = 0x0C, 0x10


@contextlib.contextmanager
def memfd(nbytes):
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, nbytes)
        yield fd
    finally:
        os.close(fd)


class TestInterrupts:
    def test_trigger_mask_and_unmask(self, client):
        with eventfds(3) as fds:
            client.set_irqs(MSIX, 5, 3, EVENTFD | TRIGGER, fds=fds)
            client.set_irqs(MSIX, 5, 3, NONE | TRIGGER)
            assert [count(fd) for fd in fds] == [1, 1, 1]
            client.set_irqs(MSIX, 5, 3, BOOL | TRIGGER, data=b"\1\0\2")
            assert [count(fd) for fd in fds] == [1, 0, 1]

    def test_masked_vectors_are_pending_until_unmasked(self, client, controller):
        Admin(client)
        with eventfds(1) as (fd,):
            client.set_irqs(MSIX, 1, 1, EVENTFD | TRIGGER, fds=(fd,))
            client.set_irqs(MSIX, 1, 1, NONE | MASK)
            controller.faults.interrupt(1)
            assert count(fd) == 0
            assert client.read(MSIX_BAR, 0x1000, 8) == struct.pack("<Q", 2)
            client.set_irqs(MSIX, 1, 1, NONE | UNMASK)
            assert count(fd) == 1
            assert client.read(MSIX_BAR, 0x1000, 8) == bytes(8)

    def test_a_pending_vector_is_signalled_when_it_gets_an_eventfd(self, client, controller):
        Admin(client)
        controller.faults.interrupt(64)
        assert client.read(MSIX_BAR, 0x1008, 8) == struct.pack("<Q", 1)
        with eventfds(1) as (fd,):
            client.set_irqs(MSIX, 64, 1, EVENTFD | TRIGGER, fds=(fd,))
            assert count(fd) == 1

    def test_disable_and_deassign(self, client, controller):
        with eventfds(2) as fds:
            client.set_irqs(MSIX, 0, 2, EVENTFD | TRIGGER, fds=fds)
            assert controller.stats()["vectors"] == 2
            client.set_irqs(MSIX, 1, 1, EVENTFD | TRIGGER)
            assert controller.stats()["vectors"] == 1
            client.set_irqs(MSIX, 0, 0, NONE | TRIGGER)
            assert controller.stats()["vectors"] == 0
            client.set_irqs(MSIX, 0, 2, NONE | TRIGGER)
            assert [count(fd) for fd in fds] == [0, 0]
            client.set_irqs(MSI, 0, 0, NONE | TRIGGER)

    def test_all_vectors_in_chunks(self, client, controller):
        with eventfds(65) as fds:
            for start in range(0, 65, 16):
                chunk = fds[start : start + 16]
                client.set_irqs(MSIX, start, len(chunk), EVENTFD | TRIGGER, fds=chunk)
            client.set_irqs(MSIX, 0, 65, NONE | TRIGGER)
            assert [count(fd) for fd in fds] == [1] * 65

    def test_replacing_an_eventfd_closes_the_old_one(self, client):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            with eventfds(1) as fds:
                client.set_irqs(MSIX, 0, 1, EVENTFD | TRIGGER, fds=fds)
        assert len(os.listdir("/proc/self/fd")) <= before + 1

    def test_intx_is_a_level_that_masks_itself_until_unmasked(self, client):
        admin = Admin(client)
        client.set_irqs(MSIX, 0, 0, NONE | TRIGGER)
        client.write(CONFIG, 4, b"\x06\x00")
        with eventfds(2) as (fd, unmask):
            client.set_irqs(INTX, 0, 1, EVENTFD | TRIGGER, fds=(fd,))
            client.set_irqs(INTX, 0, 1, EVENTFD | UNMASK, fds=(unmask,))
            admin.identify()
            assert count(fd) == 1
            assert not client.read(CONFIG, 6, 1)[0] & 8  # Interrupt Status: the completion has been taken
            admin.identify()
            assert count(fd) == 0  # masked
            os.eventfd_write(unmask, 1)
            client.read(CONFIG, 6, 1)
            assert count(fd) == 0  # served meanwhile: it isn't signalled again
            admin.submit(0x06, prp1=admin.IOVA + 8192, cdw10=1)
            assert select.select([fd], [], [], 10)[0]
            assert count(fd) == 1
            assert client.read(CONFIG, 6, 1)[0] & 8
            client.set_irqs(INTX, 0, 1, NONE | UNMASK)
            assert count(fd) == 1  # still there
            client.reg32(INTMS, 1)
            assert not client.read(CONFIG, 6, 1)[0] & 8
            client.set_irqs(INTX, 0, 1, NONE | UNMASK)
            assert count(fd) == 0
            client.write(CONFIG, 4, b"\x06\x04")
            client.reg32(INTMC, 1)
            assert count(fd) == 0
            client.write(CONFIG, 4, b"\x06\x00")  # INTx disable is over
            assert count(fd) == 1
            admin.wait()
            assert not client.read(CONFIG, 6, 1)[0] & 8

    @pytest.mark.parametrize(
        ("index", "start", "n", "flags", "data"),
        [
            (5, 0, 1, NONE | TRIGGER, b""),
            (MSIX, 65, 1, NONE | TRIGGER, b""),
            (MSIX, 0, 66, NONE | TRIGGER, b""),
            (MSIX, 0xFFFFFFFF, 2, NONE | TRIGGER, b""),
            (MSIX, 1, 0, NONE | TRIGGER, b""),
            (MSIX, 0, 0, EVENTFD | TRIGGER, b""),
            (MSIX, 0, 1, 0, b""),
            (MSIX, 0, 1, NONE, b""),
            (MSIX, 0, 1, NONE | BOOL | TRIGGER, b"\1"),
            (MSIX, 0, 1, NONE | TRIGGER | MASK, b""),
            (MSIX, 0, 1, NONE | TRIGGER | 64, b""),
            (MSIX, 0, 4, BOOL | TRIGGER, b"\1\1\1"),
            (MSIX, 0, 1, EVENTFD | MASK, b""),
            (ERR, 0, 1, NONE | MASK, b""),
            (MSI, 0, 1, NONE | TRIGGER, b""),
        ],
    )
    def test_invalid_requests_are_refused(self, client, index, start, n, flags, data):
        with refused_with(errno.EINVAL):
            client.set_irqs(index, start, n, flags, data=data)

    def test_descriptors_must_be_eventfds_and_fit_the_count(self, client):
        with memfd(4096) as fd, eventfds(2) as fds:
            for bad, n in (((fd,), 1), (fds, 1), (fds, 3), ((fds[0], fd), 2)):
                with refused_with(errno.EINVAL):
                    client.set_irqs(MSIX, 0, n, EVENTFD | TRIGGER, fds=bad)
            with refused_with(errno.EINVAL):
                client.set_irqs(MSIX, 0, 1, NONE | TRIGGER, fds=(fds[0],))

    def test_a_full_blocking_eventfd_does_not_block_the_server(self, client):
        fd = os.eventfd((1 << 32) - 1, os.EFD_CLOEXEC)
        try:
            os.eventfd_write(fd, (1 << 64) - 1 - (1 << 32))  # the most it takes
            client.set_irqs(MSIX, 0, 1, EVENTFD | TRIGGER, fds=(fd,))
            client.set_irqs(MSIX, 0, 1, NONE | TRIGGER)
            client.region_info(0)
        finally:
            os.close(fd)


class TestDma:
    def test_overlaps_and_exact_unmapping(self, client, controller):
        with memfd(64 << 10) as fd:
            client.dma_map(0x10000, 0x4000, fd)
            for iova, n in (
                (0x10000, 0x4000),
                (0xF000, 0x2000),
                (0x13FFF, 1),
                (0, 0x100000),
                (0x11000, 0x1000),
            ):
                with refused_with(errno.EEXIST):
                    client.dma_map(iova, n, None)
            client.dma_map(0x14000, 0x1000, fd)
            client.dma_map(0xF000, 0x1000, fd)
            for iova, n in (
                (0x10000, 0x2000),
                (0x11000, 0x3000),
                (0x10000, 0x5000),
                (0x20000, 0x1000),
                (0, 0),
            ):
                with refused_with(errno.ENOENT):
                    client.dma_unmap(iova, n)
            answer = client.dma_unmap(0x10000, 0x4000)
            assert struct.unpack("<IIQQ", answer) == (24, 0, 0x10000, 0x4000)
            with refused_with(errno.ENOENT):
                client.dma_unmap(0x10000, 0x4000)
            assert controller.stats()["mappings"] == 2
            client.dma_unmap(0, 0, flags=2)
            assert controller.stats()["mappings"] == 0

    def test_bad_sizes_and_flags(self, client):
        with memfd(0x3000) as fd:
            bad = [
                {"iova": 0, "nbytes": 0},
                {"iova": (1 << 64) - 4096, "nbytes": 8192},
                {"iova": 0, "nbytes": 0x3001},
                {"iova": 0, "nbytes": 0x1000, "offset": 0x2001},
                {"iova": 0, "nbytes": 0x1000, "offset": (1 << 64) - 0x1000},
                {"iova": 0, "nbytes": 1 << 63, "offset": 0},
                {"iova": 0, "nbytes": 0x1000, "flags": 0x13},
            ]
            for arguments in bad:
                with refused_with(errno.EINVAL):
                    client.dma_map(fd=fd, **arguments)
            with refused_with(errno.EINVAL):
                client.call(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, 0x1000), (fd, fd))
            with refused_with(errno.ENOTSUP):
                client.dma_unmap(0, 0x1000, flags=1)
            client.dma_map((1 << 64) - 4096, 4096, fd)

    def test_a_socket_cannot_be_mapped(self, client):
        with pytest.raises(Refused):
            client.dma_map(0, 4096, client.sock.fileno())

    def test_the_controller_accesses_mappings_at_odd_offsets(self, client):
        admin = Admin(client)
        with memfd(5 * 4096) as fd:
            client.dma_map(0x5000_0000, 0x2000, fd, offset=0x1800)
            assert admin.command(0x06, prp1=0x5000_0000, cdw10=1)[1] == 0
            with mmap.mmap(fd, 5 * 4096) as memory:
                assert memory[0x1800 + 24 : 0x1800 + 34] == b"nvme_async"
                assert memory[:0x1800] == bytes(0x1800)

    @pytest.mark.parametrize("how", ["unmapped", "across", "without descriptor", "read-only", "no access"])
    def test_an_unmapped_address_fails_only_the_command(self, client, how):
        admin = Admin(client)
        with memfd(8192) as fd:
            target = 0x7000_0000
            if how == "across":
                client.dma_map(target - 4096 + 2048, 4096, fd)
                target = target - 4096 + 2048 + 4
            elif how == "without descriptor":
                client.dma_map(target, 4096, None)
            elif how == "read-only":
                client.dma_map(target, 4096, fd, flags=1)
            elif how == "no access":
                client.dma_map(target, 4096, fd, flags=0)
            _, status = admin.command(0x06, prp1=target, cdw10=1)
            assert status & 0x7FF != 0
            assert len(admin.identify()) == 4096

    def test_thousands_of_mappings(self, client, controller):
        with memfd(4096) as fd:
            for i in range(4096):
                client.dma_map(((i * 2654435761) % (1 << 30)) << 12, 4096, fd)
            assert controller.stats()["mappings"] == 4096
            with refused_with(errno.ENOSPC):
                client.dma_map(1 << 60, 4096, fd)
            client.dma_unmap((2654435761 % (1 << 30)) << 12, 4096)
        admin = Admin(client)
        assert len(admin.identify()) == 4096

    def test_a_truncated_file_costs_the_client_its_connection(self, controller):
        with RawClient(controller.connect()) as client:
            admin = Admin(client)
            with memfd(1 << 20) as fd:
                client.dma_map(0x5000_0000, 1 << 20, fd)
                os.ftruncate(fd, 0)
                admin.submit(0x06, prp1=0x5000_0000, cdw10=1)
                assert client.closed_by_peer()
        assert controller.stats()["last_drop"] == "a mapped file was truncated"
        with RawClient(controller.connect()) as client:
            assert len(Admin(client).identify()) == 4096

    def test_truncated_queues_do_no_harm(self, controller):
        with RawClient(controller.connect()) as client:
            admin = Admin(client)
            os.ftruncate(admin.fd, 0)
            client.reg32(0x1000, 1)
            assert client.closed_by_peer()
        with RawClient(controller.connect()) as client:
            assert len(Admin(client).identify()) == 4096


class TestEventfdWakeups:
    @pytest.mark.parametrize("ring", ["message", "page", "kick"])
    def test_every_way_to_ring_is_noticed(self, controller, ring):
        with RawClient(controller.connect()) as client:
            admin = Admin(client, ring)
            for _ in range(50):
                assert len(admin.identify()) == 4096
            assert controller.stats()["kicked"] == (ring == "kick")
            assert client.reg32(CSTS) & 3 == 1
