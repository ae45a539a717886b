"""Data through the kernel's block layer: file systems, fio's verification, discards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from drive import DSM, FLUSH, KEEPS_DATA, ON_FILES, WRITE_ZEROES, Drive, sh

Find = Callable[[str], Drive]


def fio(node: Path, *options: str, timeout: float = 180) -> str:
    return sh("fio", "--name=job", f"--filename={node}", "--direct=1", *options, timeout=timeout)


VERIFY = ("--verify=crc32c", "--verify_fatal=1", "--do_verify=1")


@pytest.mark.parametrize("role", KEEPS_DATA)
def test_fio_verifies_random_blocks_of_all_sizes(drive: Find, role: str) -> None:
    node = drive(role).node()
    fio(node, "--rw=randwrite", "--bsrange=4k-1M", "--ioengine=libaio", "--iodepth=16", "--size=40M", *VERIFY)


@pytest.mark.parametrize("role", KEEPS_DATA)
def test_fio_verifies_sequential_blocks_by_several_jobs(drive: Find, role: str) -> None:
    node = drive(role).node()
    jobs = ("--numjobs=3", "--size=12M", "--offset_increment=16M", "--group_reporting")
    fio(node, "--rw=write", "--bs=256k", "--ioengine=io_uring", "--iodepth=8", *jobs, *VERIFY)


@pytest.mark.parametrize("role", ["ram-4k", "ram-512", "file-512"])
def test_fio_verifies_small_blocks_at_depth(drive: Find, role: str) -> None:
    fio(drive(role).node(), "--rw=randrw", "--bs=4k", "--ioengine=libaio", "--iodepth=128", "--size=16M", *VERIFY)


@pytest.mark.parametrize("role", ["ram-4k", "ram-512"])
def test_fio_verifies_on_polled_queues(drive: Find, role: str) -> None:
    """The queue without interrupts."""
    node = drive(role).node()
    fio(node, "--rw=randwrite", "--bs=4k", "--ioengine=io_uring", "--hipri", "--iodepth=4", "--size=4M", *VERIFY)


def test_fio_on_the_null_medium(drive: Find) -> None:
    fio(
        drive("null").node(),
        "--rw=randrw",
        "--bs=4k",
        "--ioengine=libaio",
        "--iodepth=32",
        "--size=64M",
        "--io_size=16M",
    )


@pytest.mark.parametrize("role", KEEPS_DATA)
def test_a_file_system(drive: Find, role: str, tmp_path: Path) -> None:
    it = drive(role)
    node = it.node()
    flushes = it.counter("io", FLUSH)
    sh("mkfs.ext4", "-q", "-F", node)
    digests: dict[str, str] = {}
    mounted = tmp_path / "mnt"
    mounted.mkdir()
    sh("mount", node, mounted)
    try:
        for number in range(40):
            data = os.urandom(1 + number * number * 997 % 400_000)
            place = mounted / f"folder-{number % 4}" / f"file-{number}"
            place.parent.mkdir(exist_ok=True)
            with place.open("wb") as file:
                file.write(data)
                if number % 5 == 0:
                    file.flush()
                    os.fsync(file.fileno())
            digests[str(place.relative_to(mounted))] = hashlib.sha256(data).hexdigest()
        for number in range(0, 40, 7):
            name = f"folder-{number % 4}/file-{number}"
            (mounted / name).unlink()
            del digests[name]
        sh("fstrim", mounted)
    finally:
        sh("umount", mounted)
    sh("fsck.ext4", "-f", "-n", node)
    sh("mount", "-o", "ro", node, mounted)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        found = {name: hashlib.sha256((mounted / name).read_bytes()).hexdigest() for name in digests}
    finally:
        sh("umount", mounted)
    assert found == digests
    assert (it.counter("io", FLUSH) > flushes) == (role in ON_FILES)  # the kernel flushes drives that report a cache


@pytest.mark.parametrize("role", KEEPS_DATA)
def test_discard_and_write_zeroes(drive: Find, role: str) -> None:
    it = drive(role)
    node = it.node()
    before = it.counter("io", DSM), it.counter("io", WRITE_ZEROES)
    pattern = b"\xa5" * (8 << 20)
    with node.open("r+b") as device:
        device.write(pattern)
        device.flush()
        os.fsync(device.fileno())
    sh("blkdiscard", "-o", "1048576", "-l", "2097152", node)
    sh("blkdiscard", "-z", "-o", "5242880", "-l", "1052672", node)
    with node.open("rb") as device:
        seen = device.read(len(pattern))
    expected = bytearray(pattern)
    expected[1 << 20 : 3 << 20] = bytes(2 << 20)
    expected[5 << 20 : (5 << 20) + 1052672] = bytes(1052672)
    assert seen == bytes(expected)
    after = it.counter("io", DSM), it.counter("io", WRITE_ZEROES)
    assert after[0] > before[0]
    assert after[1] > before[1]


@pytest.mark.parametrize("role", ["ram-4k", "file-512"])
def test_commands_by_nvme_cli(drive: Find, role: str, tmp_path: Path) -> None:
    """Those that the block layer doesn't send."""
    it = drive(role)
    node, block = it.node(), it.queue("logical_block_size")
    data = os.urandom(4 * block)
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "other").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    where = ("-s", "64", "-c", "3", "-z", str(4 * block))
    sh("nvme", "write", node, *where, "-d", tmp_path / "data")
    sh("nvme", "read", node, *where, "-d", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    sh("nvme", "compare", node, *where, "-d", tmp_path / "data")
    assert "Compare Failure" in sh("nvme", "compare", node, *where, "-d", tmp_path / "other", check=False)
    sh("nvme", "verify", node, "-s", "64", "-c", "3")
    sh("nvme", "copy", node, "--sdlba=128", "--blocks=3", "--slbs=64")
    sh("nvme", "read", node, "-s", "128", *where[2:], "-d", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    sh("nvme", "write", node, *where, "-f", "-d", tmp_path / "data")  # force unit access
    sh("nvme", "flush", node)
    sh("nvme", "write-zeroes", node, "-s", "64", "-c", "1")
    sh("nvme", "dsm", node, "-d", "-s", "66", "-b", "1")
    sh("nvme", "read", node, *where, "-d", tmp_path / "zeroed")
    assert (tmp_path / "zeroed").read_bytes() == bytes(3 * block) + data[3 * block :]
    sh("nvme", "write-uncor", node, "-s", "200", "-c", "0")
    damaged = ("-s", "200", "-c", "0", "-z", str(block))
    assert "Unrecovered Read" in sh("nvme", "read", node, *damaged, "-d", tmp_path / "x", check=False)
    sh("nvme", "write", node, *damaged, "-d", tmp_path / "data")
    sh("nvme", "read", node, *damaged, "-d", tmp_path / "x")


def test_reservations_by_nvme_cli(drive: Find) -> None:
    node = drive("ram-4k").node()
    sh("nvme", "resv-register", node, "--nrkey=0x1234", "--rrega=0")
    try:
        sh("nvme", "resv-acquire", node, "--crkey=0x1234", "--rtype=1", "--racqa=0")
        assert "1234" in sh("nvme", "resv-report", node)
        sh("dd", "if=/dev/zero", f"of={node}", "bs=4k", "count=1", "oflag=direct")
        sh("nvme", "resv-release", node, "--crkey=0x1234", "--rtype=1", "--rrela=0")
    finally:
        sh("nvme", "resv-register", node, "--crkey=0x1234", "--rrega=1")
