"""kernel: on QEMU's drives, whose driver stays Linux's: passthrough and block devices, in both
engines.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import block_device

import nvme_async
from nvme_async.errors import CommandError, CompareFailure, ConfigurationError, ControllerGone, NamespaceWriteProtected
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.opcodes import AdminOpcode, Feature

ENGINES = ("io_uring", "threads")


@pytest.fixture
def disk(baseline: dict[str, Any]) -> Callable[..., str]:
    """The kernel's name of a namespace, nvme0n1, by its controller's role."""
    return lambda role="plain", nsid=1: block_device(baseline[role]["address"], nsid).name


def generic(disk: str) -> str:
    return f"kernel:/dev/ng{disk.removeprefix('nvme')}"


def sh(*words: str | Path, check: bool = True) -> int:
    """The exit code of a command."""
    return subprocess.run(words, check=check, capture_output=True, timeout=60).returncode


def on_the_disk(disk: str, offset: int, nbytes: int) -> bytes:
    """What dd reads past the page cache."""
    count = f"skip={offset // 4096} count={nbytes // 4096}".split()
    command = ["dd", f"if=/dev/{disk}", "bs=4096", "iflag=direct", *count]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


async def test_identify_is_what_nvme_cli_says(disk: Callable[..., str], baseline: dict[str, Any]) -> None:
    for role in ("plain", "many", "metadata"):
        name = disk(role)
        for uri in (generic(name), f"kernel:{name.partition('n1')[0]}", f"kernel:/dev/{name.partition('n1')[0]}"):
            async with nvme_async.open(uri) as controller:
                assert controller.identify.to_json() == baseline[role]["controller"]
                expected = set(baseline[role]["namespaces"]) if "ng" not in uri else {"1"}
                assert {str(nsid) for nsid in controller.namespaces} == expected
                for nsid, namespace in controller.namespaces.items():
                    assert namespace.identify.to_json() == baseline[role]["namespaces"][str(nsid)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", ["generic", "block"])
async def test_what_is_written_is_on_the_disk(disk: Callable[..., str], way: str, engine: str) -> None:
    name = disk()
    uri = generic(name) if way == "generic" else f"kernel:/dev/{name}"
    async with nvme_async.open(uri, engine=engine) as controller:
        assert controller.inspect()["engine"].startswith(engine)
        namespace = controller.namespaces[1]
        size = namespace.block_size
        for blocks in (8, 16, 256, 2048):
            data = os.urandom(blocks * size)
            await namespace.write(blocks, data)
            assert on_the_disk(name, blocks * size, blocks * size) == data
            assert await namespace.read(blocks, blocks) == data
            buffer = bytearray(blocks * size + 1)
            await namespace.readinto(blocks, memoryview(buffer)[1:])
            assert memoryview(buffer)[1:] == data
        await namespace.compare(2048, data)
        with pytest.raises(CompareFailure):
            await namespace.compare(2049, data)
        await namespace.flush()
        await asyncio.gather(*(namespace.write(i * 8, bytes([i]) * 8 * size) for i in range(64)))
        for i, found in enumerate(await asyncio.gather(*(namespace.read(i * 8, 8) for i in range(64)))):
            assert found == bytes([i]) * 8 * size
        await namespace.write_zeroes(0, 16)
        assert on_the_disk(name, 0, 16 * size) == bytes(16 * size)
        await namespace.deallocate([(32, 8), (64, 64)])
        await namespace.submit(commands.verify(1, 0, 8))
        assert controller.inspect()["io_queues"][0]["kernel"]["in_kernel"] == 0


async def test_admin_commands_go_to_the_drive_but_for_those_of_its_driver(disk: Callable[..., str]) -> None:
    async with nvme_async.open(generic(disk())) as controller:
        smart = (await controller.admin(commands.get_log_page(2, 512))).data
        assert smart is not None
        assert 270 < int.from_bytes(smart[1:3], "little") < 400  # kelvin
        await controller.admin(commands.get_features(Feature.NUMBER_OF_QUEUES))
        refused = (
            commands.set_features(Feature.NUMBER_OF_QUEUES, 0),
            Command(opcode=AdminOpcode.DELETE_IO_SQ, cdw10=1, data_length=0, admin=True),
        )
        for command in refused:
            with pytest.raises(CommandError, match="the kernel drives this controller"):
                await controller.admin(command)


@pytest.fixture
def mounted(disk: Callable[..., str], tmp_path: Path) -> Iterator[tuple[str, Path]]:
    name = disk("second")
    sh("mkfs.ext4", "-q", "-F", f"/dev/{name}")
    sh("mount", f"/dev/{name}", tmp_path)
    yield name, tmp_path
    sh("umount", tmp_path)


async def test_a_mounted_namespace_is_read_and_not_written(mounted: tuple[str, Path]) -> None:
    name, folder = mounted
    (folder / "file").write_text("of somebody else")
    os.sync()
    for uri in (generic(name), f"kernel:/dev/{name}", f"file:/dev/{name}"):
        async with nvme_async.open(uri) as controller:
            namespace = controller.namespaces[1]
            superblock = await namespace.read(0, 1)
            assert superblock[1024 + 56 : 1024 + 58] == b"\x53\xef"  # ext4's magic
            for attempt in (
                namespace.write(0, bytes(namespace.block_size)),
                namespace.write_zeroes(0, 8),
                namespace.deallocate([(0, 8)]),
            ):
                with pytest.raises(NamespaceWriteProtected, match=f"/dev/{name} is mounted at {folder}"):
                    await attempt
            if not uri.startswith("file:"):
                with pytest.raises(CommandError, match="is mounted at"):
                    await controller.admin(Command(opcode=AdminOpcode.FORMAT_NVM, nsid=1, data_length=0, admin=True))
            assert await namespace.read(0, 1) == superblock
        async with nvme_async.open(uri, allow_mounted_write=True) as controller:
            assert controller.inspect()["nodes"][1]["read_only"] == ""
    sh("umount", folder)
    try:
        sh("fsck.ext4", "-fn", f"/dev/{name}")
    finally:
        sh("mount", f"/dev/{name}", folder)


async def test_nothing_is_mounted_while_it_may_be_written(disk: Callable[..., str], tmp_path: Path) -> None:
    name = disk("second")
    sh("mkfs.ext4", "-q", "-F", f"/dev/{name}")
    for uri in (generic(name), f"kernel:/dev/{name}"):
        async with nvme_async.open(uri):
            assert sh("mount", f"/dev/{name}", tmp_path, check=False) != 0


async def test_the_disk_with_the_root_file_system_is_for_reading(baseline: dict[str, Any]) -> None:
    name = block_device(baseline["root"]["address"], 1).name
    async with nvme_async.open(generic(name)) as controller:
        await controller.namespaces[1].read(0, 8)
        with pytest.raises(NamespaceWriteProtected, match=r"is mounted at / "):
            await controller.namespaces[1].write_zeroes(0, 1)


async def _read_on(namespace: Any) -> None:
    for _ in range(50):
        await namespace.read(0, 8)
        await asyncio.sleep(0.02)


async def test_a_drive_that_is_taken_away_is_gone(disk: Callable[..., str], baseline: dict[str, Any]) -> None:
    name, address = disk("mdts-none"), baseline["mdts-none"]["address"]
    controller = await nvme_async.open(generic(name))
    namespace = controller.namespaces[1]
    await namespace.read(0, 8)
    function = Path("/sys/bus/pci/devices") / address
    (function / "driver/unbind").write_text(address)
    try:
        with pytest.raises((ControllerGone, CommandError)):
            await _read_on(namespace)
        await controller.close()
        with pytest.raises(ControllerGone):
            await nvme_async.open(generic(name))
    finally:
        Path("/sys/bus/pci/drivers_probe").write_text(address)
        block_device(address, 1)
    async with nvme_async.open(generic(disk("mdts-none"))) as again:
        await again.namespaces[1].read(0, 8)


async def test_polling_without_queues_for_it_works(disk: Callable[..., str]) -> None:
    async with nvme_async.open(f"kernel:/dev/{disk()}", io_poll=True) as controller:
        # Linux 6.1 ends such reads by interrupt, later ones refuse them and get them without
        # polling.
        assert len(await controller.namespaces[1].read(0, 8)) == 8 * controller.namespaces[1].block_size
    with pytest.raises(ConfigurationError):
        await nvme_async.open(f"kernel:/dev/{disk()}", io_poll=True, engine="threads")


def test_the_list_and_the_benchmark_know_it(disk: Callable[..., str]) -> None:
    name = disk()
    listed = json.loads(subprocess.check_output(["nvme-async", "list", "-o", "json"], timeout=60))
    assert any(generic(name) in function["kernel_uris"] for function in listed)
    bench = f"nvme-async bench --name=x --filename={generic(name)} --rw=randwrite --verify=crc32c --bs=4k --size=1m"
    report = subprocess.check_output([*bench.split(), "--iodepth=16", "--output-format=json"], timeout=120)
    assert json.loads(report)["jobs"][0]["error"] == 0
