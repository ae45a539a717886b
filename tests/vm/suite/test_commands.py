"""nvme-async list, bind, unbind and doctor on a real kernel, and the driver as an ordinary user."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab import block_device, driver, rebind

from nvme_async.device.pci import System

USER = "tester"


def nvme_async(*arguments: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
    prefix = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    return subprocess.run([*prefix, "nvme-async", *arguments], capture_output=True, text=True, timeout=90, check=False)


def run(*command: str) -> None:
    subprocess.run(command, capture_output=True, timeout=60, check=True)


@pytest.fixture
def kernels(baseline: dict[str, Any]) -> Iterator[Callable[[str], tuple[str, Path]]]:
    """(address, block device) of a role under the kernel's driver."""
    taken: list[str] = []

    def take(role: str) -> tuple[str, Path]:
        place = baseline[role]["address"]
        taken.append(place)
        rebind(place, "nvme")
        return place, block_device(place, 1)

    yield take
    for place in taken:
        rebind(place, "nvme")
        System().forget(place)


def refused(place: str, reason: str) -> None:
    result = nvme_async("bind", f"pci:{place}")
    assert result.returncode == 1
    assert reason in result.stderr
    assert driver(place) == "nvme"


def test_the_root_drive_is_refused_and_the_mount_is_named(baseline: dict[str, Any]) -> None:
    place = baseline["root"]["address"]
    result = nvme_async("bind", f"pci:{place}")
    assert result.returncode == 1
    assert "is mounted at / (ext4)" in result.stderr
    print(result.stderr)
    assert driver(place) == "nvme"


def test_a_drive_mounted_in_another_namespace_is_refused(
    kernels: Callable[[str], tuple[str, Path]], tmp_path: Path
) -> None:
    place, device = kernels("second")
    run("mkfs.ext4", "-q", "-F", str(device))
    script = f"mount {device} {tmp_path} && echo ready && read line; umount {tmp_path}"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        refused(place, f"{device} is mounted at {tmp_path} (ext4)")
        other.communicate("\n", timeout=30)


def test_swap_is_refused(kernels: Callable[[str], tuple[str, Path]]) -> None:
    place, device = kernels("plain")
    run("mkswap", str(device))
    run("swapon", str(device))
    try:
        refused(place, f"{device} is used as swap")
    finally:
        run("swapoff", str(device))


def test_a_drive_held_by_device_mapper_is_refused(kernels: Callable[[str], tuple[str, Path]]) -> None:
    place, device = kernels("plain")
    run("modprobe", "dm_mod")
    run("dmsetup", "create", "held", "--noudevsync", "--table", f"0 8192 linear {device} 0")
    try:
        refused(place, "is held by device-mapper dm-0 (held)")
    finally:
        run("dmsetup", "remove", "--noudevsync", "held")


def test_a_drive_held_by_md_is_refused(kernels: Callable[[str], tuple[str, Path]]) -> None:
    place, device = kernels("plain")
    run("modprobe", "raid1")
    create = ["mdadm", "--create", "/dev/md7", "--run", "--level=1", "--force", "--raid-devices=1", str(device)]
    subprocess.run(create, capture_output=True, timeout=60, check=True, input=b"y\n")
    try:
        refused(place, "is held by md array md7 (raid1)")
    finally:
        run("mdadm", "--stop", "/dev/md7")
        run("mdadm", "--zero-superblock", str(device))


def test_exclusive_use_is_refused_until_it_ends(kernels: Callable[[str], tuple[str, Path]]) -> None:
    place, device = kernels("plain")
    fd = os.open(device, os.O_RDONLY | os.O_EXCL)
    try:
        refused(place, f"{device} is opened exclusively by another process")
    finally:
        os.close(fd)
    assert nvme_async("bind", f"pci:{place}").returncode == 0
    assert driver(place) == "vfio-pci"


def test_force_takes_a_mounted_drive_and_says_so(kernels: Callable[[str], tuple[str, Path]], tmp_path: Path) -> None:
    place, device = kernels("second")
    run("mkfs.ext4", "-q", "-F", str(device))
    run("mount", str(device), str(tmp_path))
    try:
        result = nvme_async("bind", "--force", place)
        assert result.returncode == 0
        assert f"broke: {device} is mounted at {tmp_path} (ext4)" in result.stderr
        assert driver(place) == "vfio-pci"
    finally:
        run("umount", str(tmp_path))


def test_list_bind_and_unbind(kernels: Callable[[str], tuple[str, Path]], baseline: dict[str, Any]) -> None:
    place, _ = kernels("plain")
    listed = {entry["address"]: entry for entry in json.loads(nvme_async("list", "-o", "json").stdout)}
    assert {entry["serial"] for entry in listed.values()} == set(baseline)
    (use,) = listed[baseline["root"]["address"]]["in_use"]
    assert use["what"] == "is mounted at / (ext4)"
    assert (listed[place]["driver"], listed[place]["in_use"]) == ("nvme", [])
    assert nvme_async("bind", place).stdout == f"pci:{place}: nvme -> vfio-pci\n"
    line = next(line for line in nvme_async("list").stdout.splitlines() if line.startswith(place))
    assert "QEMU NVMe Ctrl  plain" in line  # remembered: the kernel's driver is gone
    assert "vfio-pci" in line
    assert nvme_async("unbind", place).stdout == f"pci:{place}: vfio-pci -> nvme\n"
    assert block_device(place, 1).exists()


def test_unbind_refuses_while_a_process_drives_it(address: Callable[[str], str]) -> None:
    from nvme_async.device.vfio import open_uri

    place = address("plain")
    with open_uri(place):
        result = nvme_async("unbind", place)
        assert result.returncode == 1
        assert f"({os.getpid()})" in result.stderr
        assert driver(place) == "vfio-pci"


def test_a_shared_group_is_hinted_at(kernels: Callable[[str], tuple[str, Path]], baseline: dict[str, Any]) -> None:
    place, _ = kernels("twin-a")
    result = nvme_async("bind", place)
    assert result.returncode == 0
    assert f"also holds {baseline['twin-b']['address']}, which is bound to nvme" in result.stderr


@contextmanager
def owned(place: str) -> Iterator[Path]:
    """An ordinary user owns the group's node meanwhile."""
    node = Path("/dev/vfio", Path(f"/sys/bus/pci/devices/{place}/iommu_group").resolve().name)
    result = nvme_async("bind", place, "--owner", USER)
    assert result.returncode == 0, result.stderr
    try:
        yield node
    finally:
        assert nvme_async("unbind", place).returncode == 0


DRIVE_IT = """
import asyncio, os, sys
import nvme_async
async def main():
    async with nvme_async.open(sys.argv[1], pool_bytes=4 << 20, hugepages="never") as controller:
        namespace = controller.namespaces[1]
        data = os.urandom(65536)
        await namespace.write(0, data)
        assert await namespace.read(0, 128) == data
    print("driven by uid", os.geteuid())
asyncio.run(main())
"""


def test_an_ordinary_user_drives_it_once_the_node_is_theirs(
    kernels: Callable[[str], tuple[str, Path]],
) -> None:
    place, _ = kernels("plain")
    command = [
        "setpriv",
        f"--reuid={USER}",
        f"--regid={USER}",
        "--clear-groups",
        "python",
        "-c",
        DRIVE_IT,
        f"pci:{place}",
    ]
    with owned(place) as node:
        assert node.owner() == USER
        limited = ["prlimit", "--memlock=67108864:67108864", *command]
        done = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
        assert (done.stdout, done.returncode) == ("driven by uid 1000\n", 0), done.stderr
        # Too little for the pool: an error that names the limit and the remedy.
        poor = ["prlimit", "--memlock=65536:65536", *command]
        done = subprocess.run(poor, capture_output=True, text=True, timeout=60, check=False)
        assert "may lock 65536 bytes of memory (`ulimit -l`)" in done.stderr, done.stderr[-600:]
        os.chown(node, 0, 0)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert f"can't open {node}" in done.stderr
        assert "`chown 1000" in done.stderr


def test_doctor_finds_this_machine_fit_for_root_and_helps_the_user(
    kernels: Callable[[str], tuple[str, Path]],
) -> None:
    place, _ = kernels("plain")
    with owned(place) as node:
        result = nvme_async("doctor", "-o", "json")
        assert result.returncode == 0, result.stdout
        assert all(entry["level"] != "problem" for entry in json.loads(result.stdout))
        os.chown(node, 0, 0)
        result = nvme_async("doctor", "-o", "json", user=USER)
        assert result.returncode == 1
        fixes = {entry["check"]: entry["fix"] for entry in json.loads(result.stdout) if entry["level"] == "problem"}
        assert fixes["permission"].startswith(f"chown 1000 {node}")
