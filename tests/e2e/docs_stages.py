"""Where the documentation's blocks run: which drive, names and files each finds.

A block without an entry finds `controller` and `ns`, an emulated drive of 512 byte blocks. An entry
is chosen by the page and a text in the block.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs

import nvme_async
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig
from nvme_async.keepalive.keeper.process import listen
from nvme_async.keepalive.keeper.server import Keeper

DRIVE = "emulated:size=16MiB,block=512"
PCI = "pci:0000:01:00.0"
NQN = "nqn.2024-01.io.example:disk1"
Names = dict[str, Any]


@asynccontextmanager
async def drive(folder: Path, uri: str = DRIVE) -> AsyncIterator[Names]:
    async with nvme_async.open(uri) as controller:
        yield {"controller": controller, "ns": controller.namespaces.get(1)}


@asynccontextmanager
async def kept(folder: Path) -> AsyncIterator[Names]:
    """A manager whose devices are saved, and both ends of a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with nvme_async.Manager(workers=1) as manager:
            await manager.load("emulated:size=4MiB", keepalive=True)
            names: Names = {"manager": manager, "sock": ours, "peer": theirs}
            yield names
            await names["manager"].close()  # the successor's


@asynccontextmanager
async def target(folder: Path) -> AsyncIterator[Names]:
    """An NVMe/TCP target with two ports."""
    with EmulatedController("size=4MiB") as emulated:
        (_, port), (_, second) = emulated.serve_tcp(("127.0.0.1", 0), ("127.0.0.1", 0), config=TcpConfig(nqn=NQN))
        yield {"PORT": port, "SECOND": second}


@asynccontextmanager
async def shared(folder: Path) -> AsyncIterator[Names]:
    async with (
        nvme_async.open(DRIVE, shadow_doorbells=False) as controller,
        controller.share(str(folder / "nvme.sock"), pool_bytes=4 << 20),
    ):
        yield {}


@asynccontextmanager
async def keeper(folder: Path) -> AsyncIterator[Names]:
    """A keeper and a controller that outlives its drivers."""
    with EmulatedController("size=4MiB") as emulated:
        emulated.listen(str(folder / "device"))
        holder = Keeper(listen(str(folder / "keeper.sock")))
        thread = threading.Thread(target=holder.run)
        thread.start()
        names: Names = {}
        try:
            yield names
            await names["controller"].close()
        finally:
            holder.stop()
            await asyncio.to_thread(thread.join)


@attrs.frozen
class Stage:
    """setting: yields the names that the block finds. replace: texts, `{folder}` being the test's,
    and other `{…}` names of the setting. endless: the block serves until it is cancelled.
    """

    setting: Any = drive
    uri: str | None = None
    names: Mapping[str, Any] = attrs.field(factory=dict)
    replace: Mapping[str, str] = attrs.field(factory=dict)
    endless: bool = False

    def enter(self, folder: Path) -> AbstractAsyncContextManager[Names]:
        context: AbstractAsyncContextManager[Names] = (
            self.setting(folder) if self.uri is None else drive(folder, self.uri)
        )
        return context


BLOCK = bytes(512)
KEEPER = {PCI: "vfio-user:{folder}/device", "/run/nvme-async/keeper.sock": "{folder}/keeper.sock"}
STAGES: dict[tuple[str, str], Stage] = {
    ("commands.md", "meta = bytearray"): Stage(
        uri="emulated:size=1MiB,block=512,metadata=8", names={"lba": 0, "blocks": 2}
    ),
    ("commands.md", "Protect(by="): Stage(
        uri="emulated:size=1MiB,block=512,metadata=8,pi=1", names={"lba": 0, "blocks": 1, "data": BLOCK}
    ),
    ("commands.md", "ZonedNamespace.of"): Stage(
        uri="emulated:size=4MiB,block=512,zoned=on,zone_size=1MiB", names={"data": BLOCK}
    ),
    ("commands.md", "KeyValueNamespace.of"): Stage(uri="emulated:size=1MiB,key_value=on"),
    ("commands.md", "ns.compare_and_write"): Stage(
        uri="emulated:size=16MiB,block=512,namespaces=2,copy_formats=0/2,fused=8",
        names={"lba": 0, "expected": BLOCK, "data": b"x" * 512},
    ),
    ("commands.md", "ns.placement.status"): Stage(
        uri="emulated:size=16MiB,block=512,fdp=4,streams=8", names={"lba": 0, "data": BLOCK}
    ),
    ("commands.md", "controller.power"): Stage(uri="emulated:size=1MiB,power_states=5"),
    ("commands.md", "management.format_namespace"): Stage(
        uri="emulated:size=16MiB,capacity=64MiB,firmware_slots=3",
        names={"image": b"FW2     " + bytes(4088)},
        replace={"1 << 30": "1 << 20"},
    ),
    ("manager.md", "manager.events()"): Stage(
        replace={PCI: DRIVE, "/run/nvme.sock": "{folder}/nvme.sock"}, names={"data": BLOCK}, endless=True
    ),
    ("manager.md", "SavedDevices.receive"): Stage(kept, replace={"receive(sock)": "receive(peer)"}),
    ("tcp.md", "198.51.100.7"): Stage(
        target, replace={"192.0.2.7:4420": "127.0.0.1:{PORT}", "198.51.100.7:4420": "127.0.0.1:{SECOND}"}
    ),
    ("tcp.md", "discover"): Stage(
        target, replace={"192.0.2.7:4420": "127.0.0.1:{PORT}", "192.0.2.7:8009": "127.0.0.1:{PORT}"}
    ),
    ("sharing.md", "controller.share("): Stage(
        replace={PCI: DRIVE, "/run/nvme.sock": "{folder}/nvme.sock"}, endless=True
    ),
    ("sharing.md", 'open("shared:'): Stage(shared, replace={"/run/nvme.sock": "{folder}/nvme.sock"}),
    ("keepalive.md", "keeper="): Stage(keeper, replace=KEEPER),
    ("keepalive-keeper.md", "controller.adopted"): Stage(keeper, replace=KEEPER),
    ("kernel.md", "kernel:"): Stage(
        replace={"kernel:/dev/ng0n1": "file:{folder}/disk", "/var/tmp/disk": "{folder}/disk"}
    ),
    ("export.md", "NbdServer"): Stage(replace={"/tmp/disk.nbd": "{folder}/disk.nbd"}),
}

NOT_RUN: dict[tuple[str, str], str] = {
    ("design.md", ""): "lists of calls with the types of their results, and one loop that is C",
    ("keepalive.md", "controller.exec("): "replaces the process: test_keepalive_exec.py",
    ("keepalive-keeper.md", "controller.exec("): "replaces the process: test_keepalive_exec.py",
    ("keepalive-keeper.md", "stand_by("): "returns when another process has died: test_keepalive_keeper.py",
    ("sharing.md", "take_over("): "halves of two processes: test_sharing_succession.py",
    ("export.md", "block_device"): "needs the module ublk_drv: make test-disk",
}
"""Blocks that are compiled only, and why. Those of design.md are not even that."""


def chosen(page: Path, source: str, table: Mapping[tuple[str, str], Any]) -> tuple[str, str] | None:
    """The entry of a block."""
    return next((key for key in table if key[0] == page.name and key[1] in source), None)


def replaced(source: str, stage: Stage, folder: Path, names: Names) -> str:
    for text, other in stage.replace.items():
        assert text in source, text
        source = source.replace(text, other.format(folder=folder, **names))
    return source


def common() -> Names:
    return {"nvme_async": nvme_async, "asyncio": asyncio, "sys": sys}
