"""Changes of a controller in use: resets, new and resized namespaces, formats, unbinding and
rebinding of the driver.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from drive import KEEPS_DATA, ROLES, Drive, json_of, sh, until
from lab import driver, rebind

Find = Callable[[str], Drive]


def fill(node: Path, nbytes: int = 1 << 20) -> bytes:
    data = os.urandom(nbytes)
    with node.open("r+b") as device:
        device.write(data)
        device.flush()
        os.fsync(device.fileno())
    return data


def content(node: Path, nbytes: int = 1 << 20) -> bytes:
    Path("/proc/sys/vm/drop_caches").write_text("3")
    with node.open("rb") as device:
        return device.read(nbytes)


@pytest.mark.parametrize("role", ROLES)
def test_reset(drive: Find, role: str) -> None:
    it = drive(role)
    data = fill(it.node())
    enables = it.ask("counters")["enables"]
    for _ in range(3):
        sh("nvme", "reset", it.controller)
        until(lambda: it.state == "live", "the controller is live")
    assert it.ask("counters")["enables"] == enables + 3
    assert content(it.node()) == (data if role != "null" else content(it.node()))


@pytest.mark.parametrize("role", ["ram-4k", "ram-512", "file-4k", "one-queue"])
def test_resets_in_the_middle_of_verified_io(drive: Find, role: str) -> None:
    """The kernel resends commands lost in a reset; none may arrive twice or late."""
    it = drive(role)
    job = subprocess.Popen(
        [
            *(
                "fio",
                "--name=job",
                f"--filename={it.node()}",
                "--direct=1",
                "--rw=randwrite",
                "--bs=16k",
                "--iodepth=16",
            ),
            *("--ioengine=libaio", "--size=32M", "--verify=crc32c", "--verify_fatal=1", "--time_based", "--runtime=4"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    resets = 0
    while job.poll() is None:
        time.sleep(0.5)
        if job.poll() is None and it.state == "live":
            sh("nvme", "reset", it.controller)
            resets += 1
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 0, said
    assert resets >= 2


@pytest.mark.parametrize("role", ["ram-4k", "ram-512"])
def test_function_level_reset(drive: Find, role: str) -> None:
    it = drive(role)
    data = fill(it.node())
    resets = it.ask("counters")["resets"]
    (Path("/sys/bus/pci/devices") / it.address / "reset").write_text("1")
    until(lambda: it.state == "live", "the controller is live")
    assert it.ask("counters")["resets"] > resets
    assert content(it.node()) == data


@pytest.mark.parametrize("role", KEEPS_DATA)
def test_the_driver_is_unbound_and_rebound(drive: Find, role: str) -> None:
    it = drive(role)
    data = fill(it.node())
    shutdowns = it.ask("counters")["shutdowns"]
    address = it.address
    for _ in range(2):
        (Path("/sys/bus/pci/drivers/nvme") / "unbind").write_text(address)
        assert driver(address) is None
        rebind(address, "nvme")
        it = drive(role)
    assert it.ask("counters")["shutdowns"] == shutdowns + 2
    assert content(it.node()) == data


def test_the_function_is_removed_and_found_again(drive: Find) -> None:
    it = drive("ram-512")
    data = fill(it.node())
    (Path("/sys/bus/pci/devices") / it.address / "remove").write_text("1")
    Path("/sys/bus/pci/rescan").write_text("1")
    assert content(drive("ram-512").node()) == data


def test_namespaces_are_added_resized_and_removed(drive: Find) -> None:
    """The kernel must learn of all changes from events, without a requested rescan."""
    it = drive("changing")
    it.ask("add_namespace", nsid=7, size=32 << 20, block=512)
    node = it.node(7)
    assert it.nbytes(7) == 32 << 20
    data = fill(node)
    it.ask("resize_namespace", nsid=7, size=48 << 20)
    until(lambda: it.nbytes(7) == 48 << 20, "the kernel sees the new size")
    assert content(node) == data
    sh("dd", "if=/dev/zero", f"of={node}", "bs=1M", "seek=40", "count=8", "oflag=direct")
    it.ask("remove_namespace", nsid=7)
    until(lambda: not node.exists(), "the namespace's node is gone")
    # A new namespace with the same number is a different one.
    it.ask("add_namespace", nsid=7, size=16 << 20, block=4096)
    until(lambda: it.node(7).exists() and it.nbytes(7) == 16 << 20, "the new namespace is there")
    assert not any(content(it.node(7)))
    it.ask("remove_namespace", nsid=7)
    until(lambda: not Path(f"/sys/block/{node.name}").exists(), "the namespace is gone again")


def test_a_namespace_that_came_unannounced_is_found_by_a_rescan(drive: Find) -> None:
    it = drive("changing")
    it.ask("add_namespace", nsid=9, size=16 << 20, notice=False)
    sh("nvme", "ns-rescan", it.controller)
    assert it.nbytes(9) == 16 << 20
    it.ask("remove_namespace", nsid=9, notice=False)
    sh("nvme", "ns-rescan", it.controller)
    until(lambda: json_of("nvme", "list-ns", it.controller)["nsid_list"] == [{"nsid": 1}], "it is gone")


def test_format_to_the_other_block_size_and_back(drive: Find) -> None:
    it = drive("changing")
    fill(it.node())
    for lbaf, block in ((0, 512), (1, 4096)):
        sh("nvme", "format", it.node(), "-l", str(lbaf), "--force", timeout=60)
        until(lambda block=block: it.queue("logical_block_size") == block, f"the kernel sees blocks of {block}")
        assert it.nbytes() == 64 << 20
        assert not any(content(it.node()))
        sh(
            "fio",
            "--name=job",
            f"--filename={it.node()}",
            "--direct=1",
            "--rw=randwrite",
            f"--bs={block}",
            "--size=2M",
            "--ioengine=libaio",
            "--iodepth=16",
            "--verify=crc32c",
        )


def test_all_controllers_at_once(drive: Find) -> None:
    """Interrupts of seven queues on two processors."""
    failures: list[str] = []

    def work(role: str) -> None:
        try:
            verify = () if role == "null" else ("--verify=crc32c", "--verify_fatal=1")
            sh(
                "fio",
                "--name=job",
                f"--filename={drive(role).node()}",
                "--direct=1",
                "--rw=randwrite",
                "--bs=4k",
                "--size=6M",
                "--ioengine=libaio",
                "--iodepth=8",
                *verify,
                timeout=100,
            )
        except AssertionError as error:
            failures.append(f"{role}: {error}")

    threads = [threading.Thread(target=work, args=(role,)) for role in ROLES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)
    assert not failures
