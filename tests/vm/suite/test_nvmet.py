"""NVMe/TCP with Linux: our host on the kernel's target, and the kernel's host on our target,
over lo.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import block_device
from nvmet import PORT, Target, prepare, sh

import nvme_async
from nvme_async.errors import CommandError

NQN = "nqn.2024-01.io.example:kernel"
OURS = "nqn.2024-01.io.example:emulated"
OUR_PORT = 4421


@pytest.fixture(scope="module")
def network() -> None:
    if why := prepare():
        pytest.skip(f"this kernel has no NVMe/TCP: {why}")


@pytest.fixture
def target(network: None, baseline: dict[str, Any]) -> Iterator[Target]:
    made = Target(NQN)
    try:
        made.add(1, block_device(baseline["plain"]["address"], 1))
        made.up()
        yield made
    finally:
        made.close()


URI = f"tcp:127.0.0.1:{PORT}/{NQN}"


async def write_and_check(namespace: Any, rounds: int = 40) -> None:
    size = namespace.block_size
    for blocks in (1, 8, 32, 33, 256, 2048):
        data = os.urandom(blocks * size)
        await namespace.write(blocks, data)
        assert await namespace.read(blocks, blocks) == data
    await asyncio.gather(*(namespace.write(i * 8, bytes([i]) * 8 * size) for i in range(rounds)))
    for i, found in enumerate(await asyncio.gather(*(namespace.read(i * 8, 8) for i in range(rounds)))):
        assert found == bytes([i]) * 8 * size
    many = await namespace.read_many(array("Q", range(8 * rounds)))
    assert bytes(many.data[:: 8 * size]) == bytes(range(rounds))
    await namespace.flush()


@pytest.mark.parametrize("digests", [False, True])
async def test_our_host_on_the_kernels_target(target: Target, digests: bool) -> None:
    async with nvme_async.open(URI, hdr_digest=digests, data_digest=digests) as controller:
        assert controller.identify.subnqn.rstrip("\0") == NQN
        await write_and_check(controller.namespaces[1])
        association = controller.inspect()["io_queues"][0]["connection"]
        assert association["data_digest"] == association["header_digest"] == digests
        with pytest.raises(CommandError):
            await controller.namespaces[1].read(controller.namespaces[1].blocks - 1, 2)


async def test_discovery_names_it(target: Target) -> None:
    found = await nvme_async.discover(f"tcp:127.0.0.1:{PORT}")
    assert NQN in {entry.subnqn for entry in found}


async def test_namespaces_come_and_go(target: Target, baseline: dict[str, Any]) -> None:
    async with nvme_async.open(URI) as controller:
        target.add(2, block_device(baseline["second"]["address"], 1))
        await until(lambda: 2 in controller.namespaces)
        await write_and_check(controller.namespaces[2])
        target.remove(2)
        await until(lambda: 2 not in controller.namespaces)
        await write_and_check(controller.namespaces[1])


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        await asyncio.sleep(0.02)


async def test_a_target_that_goes_away_and_comes_back_costs_no_write(target: Target) -> None:
    async with nvme_async.open(URI, reconnect_delay=0.2) as controller:
        namespace = controller.namespaces[1]
        written: dict[int, int] = {}
        going = True

        async def writer(slot: int) -> None:
            number = 0
            while going:
                number += 1
                await namespace.write(slot, number.to_bytes(8, "little").ljust(namespace.block_size, b"\0"))
                written[slot] = number
                assert int.from_bytes((await namespace.read(slot, 1))[:8], "little") == number

        tasks = [asyncio.create_task(writer(slot)) for slot in range(8)]
        for _ in range(2):
            await asyncio.sleep(0.3)
            target.down()
            await asyncio.sleep(0.3)
            target.up()
            before = dict(written)
            await until(lambda before=before: all(written.get(slot, 0) > before.get(slot, 0) for slot in range(8)))  # type: ignore[misc]
        going = False
        await asyncio.gather(*tasks)
        assert controller.inspect()["association"]["reconnects"] >= 1
        for slot, number in written.items():
            assert int.from_bytes((await namespace.read(slot, 1))[:8], "little") == number


@pytest.fixture
def ours(network: None) -> Iterator[str]:
    """Our target as Linux has it connected: the kernel's name of its namespace."""
    command = [sys.executable, "-m", "nvme_async.cli.main", "emulate", "--tcp", f"127.0.0.1:{OUR_PORT}", "--nqn", OURS]
    with subprocess.Popen([*command, "--size", "64MiB"], stdout=subprocess.PIPE, text=True) as emulator:
        try:
            assert emulator.stdout is not None
            assert emulator.stdout.readline()
            before = set(os.listdir("/sys/block"))
            sh("nvme", "connect", "-t", "tcp", "-a", "127.0.0.1", "-s", str(OUR_PORT), "-n", OURS)
            limit = time.monotonic() + 20
            while not (new := [name for name in set(os.listdir("/sys/block")) - before if "c" not in name]):
                assert time.monotonic() < limit, "the kernel shows no namespace"
                time.sleep(0.05)
            yield new[0]
        finally:
            sh("nvme", "disconnect", "-n", OURS, check=False)
            emulator.send_signal(signal.SIGTERM)
            emulator.wait(30)


def test_the_kernels_host_on_our_target(ours: str, tmp_path: Path) -> None:
    node = f"/dev/{ours}"
    kernels = json.loads(sh("/usr/local/bin/nvme-2.13", "id-ns", node, "-o", "json").stdout)
    command = [sys.executable, "-m", "nvme_async.cli.main", "id-ns", f"tcp:127.0.0.1:{OUR_PORT}/{OURS}", "-n", "1"]
    assert json.loads(sh(*command, "-o", "json").stdout) == kernels
    listed = sh("nvme", "discover", "-t", "tcp", "-a", "127.0.0.1", "-s", str(OUR_PORT)).stdout
    assert OURS in listed
    sh("mkfs.ext4", "-q", "-F", node)
    sh("mount", node, tmp_path)
    data = os.urandom(4 << 20)
    (tmp_path / "file").write_bytes(data)
    sh("umount", tmp_path)
    sh("fsck.ext4", "-fn", node)
    sh("mount", "-o", "ro", node, tmp_path)
    assert (tmp_path / "file").read_bytes() == data
    sh("umount", tmp_path)
    verified = f"fio --name=v --filename={node} --rw=randwrite --bs=4k --size=4m --iodepth=16 --ioengine=io_uring"
    sh(*verified.split(), "--direct=1", "--verify=crc32c", "--verify_fatal=1")
