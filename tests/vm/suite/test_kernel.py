"""The kernel's driver reads what our driver writes, and the reverse; QEMU's medium is checked as
well.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lab import Host, block_device, rebind

import nvme_async

MIB = 1 << 20
# (role, namespace): 512 and 4096 byte blocks, small transfers, several namespaces
PLACES = (("plain", 1), ("second", 1), ("mdts-1", 1), ("many", 2), ("many", 5))


def kernel_read(device: Path, offset: int, nbytes: int) -> bytes:
    """dd, past the page cache."""
    command = ["dd", f"if={device}", "bs=4096", f"skip={offset // 4096}", f"count={nbytes // 4096}", "iflag=direct"]
    return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout


def kernel_write(device: Path, offset: int, data: bytes) -> None:
    """dd, past the page cache, flushed."""
    command = ["dd", f"of={device}", "bs=4096", f"seek={offset // 4096}", "oflag=direct", "conv=fsync,notrunc"]
    subprocess.run(command, input=data, capture_output=True, timeout=60, check=True)


@pytest.mark.parametrize(("role", "nsid"), PLACES)
async def test_data_go_from_one_driver_to_the_other_and_back(
    role: str, nsid: int, address: Callable[[str], str], host: Host, baseline: dict[str, Any]
) -> None:
    place = address(role)
    ours, theirs = random.Random(1).randbytes(2 * MIB), random.Random(2).randbytes(MIB)

    async with nvme_async.open(f"pci:{place}") as controller:
        namespace = controller.namespaces[nsid]
        size = namespace.block_size
        await namespace.write(4 * MIB // size, ours)
        await namespace.write_zeroes(5 * MIB // size, 16384 // size)
        await namespace.deallocate(5 * MIB // size + 65536 // size, 65536 // size)
        await namespace.flush()
        deallocated = await namespace.read(5 * MIB // size + 65536 // size, 65536 // size)
    expected = bytearray(ours)
    expected[MIB : MIB + 16384] = bytes(16384)
    expected[MIB + 65536 : MIB + 131072] = deallocated
    assert host.medium(role, nsid, 4 * MIB, 65536) == expected[:65536]

    rebind(place, "nvme")
    device = block_device(place, nsid)
    assert kernel_read(device, 4 * MIB, 2 * MIB) == expected
    kernel_write(device, 8 * MIB, theirs)

    rebind(place, "vfio-pci")
    async with nvme_async.open(f"pci:{place}") as controller:
        namespace = controller.namespaces[nsid]
        assert await namespace.read(8 * MIB // size, MIB // size) == theirs
        assert await namespace.read(4 * MIB // size, 2 * MIB // size) == expected


def file_system_with(device: Path, place: Path, content: bytes) -> None:
    """The kernel makes a file system and writes one file into it."""
    subprocess.run(["mkfs.ext4", "-q", "-F", str(device)], capture_output=True, timeout=60, check=True)
    subprocess.run(["mount", str(device), str(place)], timeout=60, check=True)
    try:
        (place / "content").write_bytes(content)
        os.sync()
    finally:
        subprocess.run(["umount", str(place)], timeout=60, check=True)


async def test_a_file_system_made_by_the_kernel_is_read_by_us(address: Callable[[str], str], tmp_path: Path) -> None:
    place = address("second")
    rebind(place, "nvme")
    content = random.Random(3).randbytes(64 << 10)
    file_system_with(block_device(place, 1), tmp_path, content)

    rebind(place, "vfio-pci")
    async with nvme_async.open(f"pci:{place}") as controller:
        namespace = controller.namespaces[1]
        superblock = await namespace.pread(4096, 0)
        assert superblock[1024 + 0x38 : 1024 + 0x3A] == b"\x53\xef"  # s_magic
        assert content in await namespace.pread(64 * MIB, 0)
        await namespace.pwrite(bytes(4096), 0)


def vector_counts(address: str) -> list[int]:
    """The interrupt count of each MSI-X vector of a function, from /proc/interrupts, which lists
    only those in use.
    """
    lines = [line for line in Path("/proc/interrupts").read_text().splitlines() if f"({address})" in line]
    counts = {}
    for line in lines:
        fields = line.split()
        vector = int(fields[-1].partition("[")[2].partition("]")[0])
        counts[vector] = sum(int(field) for field in fields[1 : 1 + (os.cpu_count() or 1)])
    return [counts[vector] for vector in sorted(counts)]


async def test_each_queue_has_its_own_interrupt(address: Callable[[str], str]) -> None:
    place = address("plain")
    async with nvme_async.open(f"pci:{place}", mode="interrupt", io_queues=4) as controller:
        namespace = controller.namespaces[1]
        before = vector_counts(place)
        assert len(before) == 5  # the admin queue's, and one for each I/O queue that there may be

        both_have_one = threading.Barrier(2, timeout=60)  # a loop that has ended leaves its queue pair to the next

        def one_loop(number: int) -> None:
            async def read() -> None:
                await namespace.read(number * 100)
                both_have_one.wait()
                for lba in range(10):
                    await namespace.read(number * 100 + lba)

            asyncio.run(read())

        with ThreadPoolExecutor(2) as threads:
            futures = [threads.submit(one_loop, number) for number in range(2)]
            for lba in range(10):
                await namespace.read(lba)
            await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
        after = vector_counts(place)
        rises = [new - old for old, new in zip(before, after, strict=True)]
        assert rises[0] > 0  # creating the queue pairs
        assert sum(1 for rise in rises[1:] if rise >= 5) == 3
        assert rises.count(0) == 1


async def test_a_namespace_with_metadata_keeps_data_and_metadata(address: Callable[[str], str]) -> None:
    async with nvme_async.open(f"pci:{address('metadata')}") as controller:
        for nsid, namespace in controller.namespaces.items():
            data = bytes([nsid, 1, 2, 3]) * (3 * namespace.block_size // 4)
            metadata = bytes(range(nsid, nsid + 24))
            await namespace.write(5, data, metadata=metadata)
            found = bytearray(24)
            assert await namespace.read(5, 3, metadata=found) == data
            assert found == metadata
            assert await namespace.read(6) == data[namespace.block_size : 2 * namespace.block_size]


async def test_shutdown_is_announced_and_then_the_controller_is_disabled(
    address: Callable[[str], str], host: Host
) -> None:
    place = address("plain")
    with host.witness() as seen:
        async with nvme_async.open(f"pci:{place}") as controller:
            await controller.namespaces[1].read(0)
            assert seen.count("pci_nvme_mmio_start_success") == 1
            assert seen.count("pci_nvme_mmio_shutdown_set") == 0
        names = [name for name in seen.names() if name.startswith(("pci_nvme_mmio_s", "pci_nvme_del"))]
        # Queues deleted, CC.SHN (Base 2.0, 3.6.1), then CC.EN=0.
        shutdown = names.index("pci_nvme_mmio_shutdown_set")
        assert names.index("pci_nvme_del_sq") < names.index("pci_nvme_del_cq") < shutdown
        assert names.index("pci_nvme_mmio_stopped") > shutdown
        assert seen.complaints() == []
