"""A namespace as /dev/ublkbN in a guest whose kernel has ublk: the disk that it makes, and a file
system that stays mounted while its server is killed, again and again.

The drive is QEMU's, behind the IOMMU. That the controller was never reset is counted in QEMU's
trace.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import Forked, Forker
from lab import Host
from serving import (
    PATIENCE,
    Keeper,
    Prober,
    Process,
    Server,
    address_of,
    ask,
    disks,
    quiet,
    run,
    sysfs,
    wait_for,
)

KILLS = int(os.environ.get("DISK_KILLS", "8"))
RESETS = int(os.environ.get("DISK_RESETS", "2"))
HANDOVERS = int(os.environ.get("DISK_HANDOVERS", "4"))
MOUNT = Path("/mnt")
# What a controller sees of a driver that brings it up, resets it or shuts it down.
LIVES = ("start_success", "stopped", "shutdown_set")
# Verified while it runs and at its end. Small: what counts is how often it is interrupted.
FIO = (
    "fio --name=verified --directory=/mnt --size=8M --rw=randwrite --bsrange=4k-64k --direct=1 --ioengine=libaio "
    "--iodepth=16 --verify=crc32c --verify_backlog=64 --verify_fatal=1 --fsync=32 --output-format=json"
)
# What the kernel says when a request or a file system has failed.
COMPLAINTS = ("I/O error", "EXT4-fs error", "EXT4-fs warning", "blocked for more than", "BUG:", "WARNING:")


@pytest.fixture(scope="module")
def uri() -> str:
    address = address_of("exported")
    run("nvme-async", "bind", f"pci:{address}")
    return f"pci:{address}"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[str]:
    with Keeper(tmp_path / "keeper.sock") as path:
        yield path


def test_the_disk_has_the_limits_of_the_namespace_and_every_operation(uri: str) -> None:
    with Server(uri, "--queues", "2", "--depth", "32") as server:
        disk = server.disk()
        assert sysfs(disk, "size") == str((256 << 20) // 512)
        assert sysfs(disk, "queue/logical_block_size") == "512"
        assert sysfs(disk, "queue/rotational") == "0"
        assert sysfs(disk, "queue/nr_requests") == "32"
        assert sysfs(disk, "queue/write_cache") == "write back"
        assert sysfs(disk, "queue/fua") == "1"
        assert int(sysfs(disk, "queue/discard_max_bytes")) > 0
        assert int(sysfs(disk, "queue/write_zeroes_max_bytes")) > 0
        assert len(list(Path(f"/sys/block/{disk.name}/mq").iterdir())) == 2
        image = random.Random(3).randbytes(1 << 20)
        fd = os.open(disk, os.O_RDWR)
        os.pwrite(fd, image, 512 * 3)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, len(image), 512 * 3) == image
        os.close(fd)
        run("blkdiscard", "--zeroout", "--offset", "4096", "--length", "65536", str(disk))
        run("blkdiscard", "--offset", "131072", "--length", "65536", str(disk))
        expected = bytearray(bytes(512 * 3) + image)
        expected[4096 : 4096 + 65536] = bytes(65536)
        read = disk.read_bytes()[: len(expected)]
        assert read[:131072] == expected[:131072]
        assert read[131072 + 65536 : len(expected)] == expected[131072 + 65536 :]
        listed = run("nvme-async", "export", "--list")
        assert f"{disk}: live, served by process {server.popen.pid}, 2 queues of 36" in listed
        run("nvme-async", "export", "--stop", str(disk))
        assert server.end() == 0  # its disk was taken away, and it had nothing else to do
        assert not disk.exists()


def test_a_read_only_disk_and_one_that_is_left_for_the_next_server(uri: str, keeper: str) -> None:
    with Server(uri, "--read-only", "--leave", keeper=keeper) as server:
        disk = server.disk()
        assert sysfs(disk, "ro") == "1"
        fd = os.open(disk, os.O_RDWR)
        with pytest.raises(PermissionError):
            os.pwrite(fd, bytes(4096), 0)
        os.close(fd)
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
    assert f"{disk}: quiesced, without a server" in run("nvme-async", "export", "--list")
    with Server(uri, "--read-only", "--recover", keeper=keeper) as server:
        assert server.disk() == disk
        assert len(disk.read_bytes()) == 256 << 20
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
    assert not disk.exists()


@pytest.fixture
def forker(tmp_path: Path) -> Iterator[Forker]:
    with Forker(tmp_path) as forker:
        yield forker


def wait_for_size(disk: Path, nbytes: int, server: Server) -> None:
    """Or for the line that says why the disk keeps its size: before Linux 6.16 it does."""
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release < (6, 16):
        server.line_with("keeps its size: this kernel can't resize it")
        return
    limit = time.monotonic() + PATIENCE
    while sysfs(disk, "size") != str(nbytes // 512):
        assert time.monotonic() < limit, server.log()
        time.sleep(0.05)
    fd = os.open(disk, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4096)
    buffer[:] = os.urandom(4096)
    assert os.pwrite(fd, buffer, nbytes - 4096) == 4096
    expected, buffer[:] = buffer[:], bytes(4096)
    assert os.preadv(fd, [buffer], nbytes - 4096) == 4096
    assert buffer[:] == expected
    os.close(fd)


class Workload(threading.Thread):
    """fio on the mounted file system, over and over."""

    def __init__(self) -> None:
        super().__init__(name="fio")
        self.enough = threading.Event()
        self.runs = self.nbytes = 0
        self.failure = ""

    def run(self) -> None:
        while not self.enough.is_set() and not self.failure:
            done = subprocess.run(FIO.split(), capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                self.failure = f"fio ended with {done.returncode}: {done.stderr or done.stdout[-2000:]}"
                return
            [job] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
            self.failure = f"fio's error is {job['error']}" if job["error"] else ""
            self.runs += 1
            self.nbytes += job["write"]["io_bytes"]

    def stop(self) -> None:
        """Once its present run has ended. It has run and found no error."""
        self.enough.set()
        self.join(600)
        assert not self.is_alive()
        assert not self.failure, self.failure
        assert self.runs


def described(stalls: list[float]) -> str:
    """Of the probing reader, one for each end of a server."""
    if not stalls:
        return "none yet"
    stalls = sorted(stalls)
    p99 = stalls[-(-len(stalls) * 99 // 100) - 1]
    return f"longest stall: median {stalls[len(stalls) // 2]:.2f} s, p99 {p99:.2f} s, longest {stalls[-1]:.2f} s"


def killed(uri: str, host: Host, forker: Forker, keeper: str | None, kills: int) -> None:
    """Kills one server after another under a mounted file system, each at a random instant. Every
    second one has a standby, which waits for the keeper to have the controller. After every third
    kill the next server is killed too, at a random instant of its recovery.
    """
    rng = random.Random()
    inside = 0

    def start(*options: str) -> Forked:
        words = ["--keeper", keeper, "export"] if keeper else ["export"]
        return forker.start("export", *words, uri, "--queues", "2", "--recover", *options)

    server = start()
    disk = server.disk()
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(disk))
    run("mount", str(disk), str(MOUNT))
    before = len(quiet(COMPLAINTS))
    work = Workload()
    with host.witness() as witness, Prober(disk) as prober:
        work.start()
        stalls = []
        recovery = 0.2  # seconds that the latest one took
        for number in range(kills):
            standby = start("--wait", "600") if keeper and number % 2 else None
            if standby:
                standby.line_with("ready to take over")
            time.sleep(rng.uniform(0.05, 1.0))
            prober.longest()
            instant = time.monotonic()
            server.kill()
            if number % 3 == 2:
                killed_too = standby or start()
                time.sleep(rng.uniform(0.0, recovery))
                inside += "/dev/ublkb" not in killed_too.log()
                killed_too.kill()
                standby = None
            began = time.monotonic()
            server = standby or start()
            assert server.disk() == disk, server.log()
            recovery = time.monotonic() - began
            prober.wait_since(instant)
            stalls.append(prober.longest())
            assert not work.failure, work.failure
            if number % 10 == 9:
                print(f"{number + 1} kills; {described(stalls)}", flush=True)
        work.stop()
        lives = [witness.count(f"pci_nvme_mmio_{what}") for what in LIVES]
        assert witness.complaints() == []
    run("umount", str(MOUNT))
    checked = run("fsck.ext4", "-f", "-n", str(disk))
    server.send(signal.SIGTERM)
    server.end()
    assert not disks(), server.log()
    print(
        f"\n{kills} kills, {inside} more inside a recovery: fio ran {work.runs} times, {work.nbytes >> 20} MiB written "
        f"and verified; {described(stalls)}; controller starts, stops, shutdowns: {lives}\n{checked}"
    )
    assert quiet(COMPLAINTS)[before:] == []
    if keeper is not None:
        assert lives == [0, 0, 0], "the controller was reset"


def test_a_mounted_file_system_survives_kills_of_its_driver(uri: str, host: Host, forker: Forker, keeper: str) -> None:
    killed(uri, host, forker, keeper, KILLS)


def test_hand_over_and_exec_go_unnoticed(uri: str, host: Host, forker: Forker, tmp_path: Path) -> None:
    application = forker.start("serve", uri)
    disk = application.disk()
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(disk))
    run("mount", str(disk), str(MOUNT))
    before = len(quiet(COMPLAINTS))
    work = Workload()
    rng = random.Random()
    stalls: dict[str, list[float]] = {"hand-overs": [], "execs": []}
    with host.witness() as witness, Prober(disk) as prober:
        work.start()
        for number in range(HANDOVERS):
            time.sleep(rng.uniform(0.05, 0.5))
            prober.longest()
            instant = time.monotonic()
            if number % 2:
                application.write("exec")
            else:
                socket = str(tmp_path / f"{number}.sock")
                application.write(f"handover {socket}")
                application.line_with("offering")
                successor = forker.start("serve", uri, "--take", socket)
                application.end()
                assert "closed" in application.log()
                application = successor
            assert application.disk() == disk
            prober.wait_since(instant)
            stalls["execs" if number % 2 else "hand-overs"].append(prober.longest())
            assert not work.failure, work.failure
            if number % 10 == 9:
                print(*(f"{len(each)} {name}; {described(each)}" for name, each in stalls.items()), flush=True)
        work.stop()
        assert [witness.count(f"pci_nvme_mmio_{what}") for what in LIVES] == [0, 0, 0], "the controller was reset"
    run("umount", str(MOUNT))
    run("fsck.ext4", "-f", "-n", str(disk))
    application.write("close")
    application.end()
    assert "closed" in application.log()
    assert quiet(COMPLAINTS)[before:] == []
    print(f"\nfio ran {work.runs} times, {work.nbytes >> 20} MiB written and verified")
    print(*(f"{len(each)} {name}: {described(each)}\n" for name, each in stalls.items() if each))


def test_the_same_through_resets_without_a_keeper(uri: str, host: Host, forker: Forker) -> None:
    killed(uri, host, forker, None, RESETS)


def test_the_disk_gets_the_size_of_its_namespace(tmp_path: Path) -> None:
    device, control = tmp_path / "device.sock", tmp_path / "control.sock"
    options = ("--size", "64MiB", "--block", "512", "--socket", str(device), "--control", str(control))
    with Process("emulate", *options), Server(f"vfio-user:{wait_for(device)}", "--leave") as server:
        disk = server.disk()
        assert sysfs(disk, "size") == str((64 << 20) // 512)
        assert ask(control, "resize_namespace", nsid=1, size="96MiB")
        wait_for_size(disk, 96 << 20, server)
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert ask(control, "resize_namespace", nsid=1, size="80MiB")
        with Server(f"vfio-user:{device}", "--recover") as successor:
            assert successor.disk() == disk
            wait_for_size(disk, 80 << 20, successor)
