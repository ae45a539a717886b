"""One device has many addresses: a Manager drives it once, whatever it is called."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from nvme_async.driver.schemes import location
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig
from nvme_async.errors import ConfigurationError, ControllerGone
from nvme_async.manager import Manager
from nvme_async.manager.registry import canonical

NQN = "nqn.2024-01.io.example:spelling"


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Paths to one file."""
    (tmp_path / "deep/folder").mkdir(parents=True)
    file = tmp_path / "disk"
    file.write_bytes(bytes(1 << 20))
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "folder").symlink_to(tmp_path / "deep/folder")
    os.link(file, tmp_path / "hard")
    # folder/.. is deep, so that ".." can't be left out of a path as text.
    return [
        f"{tmp_path}{name}" for name in ("/disk", "/deep/../disk", "//disk", "/link", "/folder/../../disk", "/hard")
    ]


async def test_every_path_to_a_file_is_one_device(names: list[str]) -> None:
    async with Manager() as manager:
        devices = [await manager.load(f"file:{name}") for name in names]
        assert {id(device) for device in devices} == {id(devices[0])}
        assert list(manager.devices) == [f"file:{names[0]}"]
        assert manager.device(f"file:{names[-1]}") is devices[0]
        handle = await manager.namespace(f"file:{names[1]}", 1)
        await handle.write(0, b"x" * handle.block_size)
        assert bytes(await (await manager.namespace(f"file:{names[3]}", 1)).read(0)) == b"x" * handle.block_size
        await manager.unload(f"file:{names[4]}")
        assert not manager.devices
        assert (await manager.load(f"file:{names[2]}")).state == "ready"


async def test_loads_at_the_same_time_make_one_device(names: list[str]) -> None:
    async with Manager() as manager:
        devices = await asyncio.gather(*(manager.load(f"file:{name}") for name in names))
        assert len({id(device) for device in devices}) == len(manager.devices) == 1


async def test_another_file_behind_a_link_is_another_device(names: list[str], tmp_path: Path) -> None:
    async with Manager() as manager:
        first = await manager.load(f"file:{tmp_path}/link")
        (tmp_path / "other").write_bytes(bytes(1 << 20))
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to(tmp_path / "other")
        second = await manager.load(f"file:{names[0]}")
        assert second is not first
        assert await manager.load(f"file:{tmp_path}/link") is first  # as long as it is loaded


async def test_options_in_another_spelling_must_agree(names: list[str]) -> None:
    async with Manager() as manager:
        first = await manager.load(f"file:{names[0]}?read_only=on&engine=threads")
        assert await manager.load(f"file:{names[1]}?engine=threads&read_only=on") is first
        for other in (f"file:{names[1]}", f"file:{names[1]}?engine=threads"):
            with pytest.raises(ConfigurationError, match="already loaded with other options"):
                await manager.load(other)
        with pytest.raises(ConfigurationError, match="engine is there twice"):
            await manager.load(f"file:{names[0]}?engine=threads&engine=io_uring")


async def test_one_target_is_one_device() -> None:
    with EmulatedController("size=1MiB") as target:
        port = target.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN))[0][1]
        async with Manager() as manager:
            first = await manager.load(f"tcp:127.0.0.1:{port}/{NQN}")
            for host in ("127.1", "127.0.0.1", "[::ffff:127.0.0.1]"):
                assert await manager.load(f"TCP:{host}:{port}/{NQN}") is first


@pytest.mark.parametrize(
    "spellings",
    [
        ("tcp:192.0.2.7:4420/nqn.x", "tcp:192.0.2.7/nqn.x"),
        ("tcp:Disk.Example:4420/nqn.x", "tcp:disk.example/nqn.x"),
        ("tcp:[2001:DB8::7]:4420/nqn.x", "tcp:[2001:db8:0:0:0:0:0:7]/nqn.x", "tcp:[2001:0db8::0007]/nqn.x"),
        ("pci:0000:01:00.0", "pci:01:00.0", "pci:00000000:01:00.0", "PCI:01:00.0"),
        ("pci:0000:0A:00.0", "pci:0a:00.0"),
        ("kernel:nvme0", "kernel:/dev/nvme0"),
    ],
)
def test_one_canonical_form(spellings: tuple[str, ...]) -> None:
    assert len({canonical(uri) for uri in spellings}) == 1


def test_paths_in_another_order_are_the_same_and_another_subsystem_is_not() -> None:
    there = location("tcp:192.0.2.7,192.0.2.8/nqn.x")
    assert location("tcp:192.0.2.8,192.0.2.7:4420/nqn.x") == there
    assert location("tcp:192.0.2.8,192.0.2.7/nqn.X") != there
    assert location("tcp:192.0.2.8/nqn.x") != there


def test_a_socket_behind_a_link_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for scheme in ("vfio-user", "shared"):
        assert location(f"{scheme}:{tmp_path}/link/c.sock") == location(f"{scheme}:{tmp_path}/there/c.sock")


def test_an_invalid_ipv4_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'300\.1\.1\.1' is not an IPv4 address"):
        canonical("tcp:300.1.1.1/nqn.x")


async def test_a_link_to_an_nvme_node_is_followed_when_it_is_opened(tmp_path: Path) -> None:
    async with Manager() as manager:
        with pytest.raises(ControllerGone, match="there is no /dev/disk/by-id/nvme-none"):
            await manager.load("kernel:/dev/disk/by-id/nvme-none")
        link = tmp_path / "nvme"
        link.symlink_to("/dev/null")
        with pytest.raises(ConfigurationError, match="leads to /dev/null, which is not an NVMe node"):
            await manager.load(f"kernel:{link}")
