"""A vfio-user server that behaves exactly like a PCI function, as QEMU's does: BARs don't decode
without an address, vectors are masked.
"""

from __future__ import annotations

import errno
import os
import struct

import pytest
from fake_vfio_user import REGION_INFO, REGION_WRITE, SET_IRQS, FakeServer, Message

from nvme_async.device.vfio_user import VfioUserDevice

BAR0 = 0x10
MEMORY_64 = 0x4


def attach(server: FakeServer) -> VfioUserDevice:
    return VfioUserDevice.from_socket(server.client.dup(), uri="vfio-user:fake", timeout=3)


def bar(server: FakeServer) -> int:
    value: int = struct.unpack_from("<Q", server.config, BAR0)[0]
    return value


def config_writes(server: FakeServer) -> list[int]:
    """Offsets, in their order."""
    requests = [struct.unpack_from("<QI", m.payload) for m in server.requests if m.command == REGION_WRITE]
    return [offset for offset, region in requests if region == 7]


@pytest.mark.parametrize("nbytes", [0x2000, 0x4000, 0x6000, 1 << 24, 1 << 28])
def test_a_bar_without_an_address_gets_one(server: FakeServer, nbytes: int) -> None:
    struct.pack_into("<Q", server.config, BAR0, MEMORY_64)
    info = struct.pack("<IIIIQQ", 32, 3, 0, 0, nbytes, 0)
    server.override[REGION_INFO] = lambda server, request: server.reply(request, info)
    with attach(server):
        address = bar(server)
        assert address
        assert address % (1 << (nbytes - 1).bit_length()) == 0, "naturally aligned, or the low bits read as zero"
        assert config_writes(server) == [BAR0, BAR0 + 4, 4], "an address first, then memory space on"


def test_a_bar_of_32_bits_stays_below_4_gib(server: FakeServer) -> None:
    struct.pack_into("<II", server.config, BAR0, 0, 0xE)
    with attach(server):
        low, other = struct.unpack_from("<II", server.config, BAR0)
        assert low
        assert other == 0xE, "BAR1 is another BAR"


@pytest.mark.parametrize("value", [0xFEB00004, 0x1_0000_0004, 0x80000000, 0xD001])
def test_an_existing_address_is_kept(server: FakeServer, value: int) -> None:
    struct.pack_into("<Q", server.config, BAR0, value)
    with attach(server):
        assert bar(server) == value


def test_a_peer_without_address_decoding_is_not_changed(server: FakeServer) -> None:
    def write(server: FakeServer, request: Message) -> None:
        offset, region = struct.unpack_from("<QI", request.payload)
        if region == 7 and offset >= BAR0:
            server.refuse(request, errno.EINVAL)
        else:
            FakeServer.answer(server, request)

    server.override[REGION_WRITE] = write
    with attach(server) as device:
        assert device.n_vectors == 9
        assert server.config[4:6] == struct.pack("<H", 0x406)


def test_after_a_reset_of_the_function_it_gets_an_address_again(server: FakeServer) -> None:
    with attach(server) as device:
        struct.pack_into("<Q", server.config, BAR0, 0)
        device.reset()
        assert bar(server)


def test_vectors_are_unmasked_once_they_have_an_eventfd(server: FakeServer) -> None:
    server.masked = set(range(9))
    with attach(server) as device:
        eventfd = os.eventfd(0)
        device.set_interrupts([eventfd, None, eventfd])
        assert server.masked == set(range(9)) - {0, 2}
        device.set_interrupts([eventfd] * 9)
        os.close(eventfd)
        assert server.masked == set()


def test_a_peer_without_masks_is_asked_once(server: FakeServer) -> None:
    with attach(server) as device:
        eventfd = os.eventfd(0)
        for _ in range(3):
            device.set_interrupts([eventfd, None, eventfd])
        os.close(eventfd)
        flags = [struct.unpack_from("<II", m.payload)[1] for m in server.requests if m.command == SET_IRQS]
        assert flags.count(0x11) == 1
        assert set(server.vectors) == {0, 2}
