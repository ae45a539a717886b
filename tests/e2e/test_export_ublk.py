"""A block device on a machine without ublk: what is refused, and that a failure leaves nothing
behind. The data path runs in the guest of `make test-disk`; here a memory file takes the place of
/dev/ublkcN, whose tags the kernel refuses.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner
from driving import may_lock_much

import nvme_async
import nvme_async.export.ublk as ublk_module
import nvme_async.export.ublk_device as module
import nvme_async.export.ublk_size as size_module
from nvme_async.cli.export import export
from nvme_async.errors import ConfigurationError, DeviceError
from nvme_async.export import State, Ublk, block_device
from nvme_async.export.ublk import RECOVERABLE, Command, DeviceInfo, Feature
from nvme_async.native import _ublk


@attrs.define
class Kernel:
    """The control device, and what was sent to it."""

    info: DeviceInfo | None = None
    sent: list[Command] = attrs.field(factory=list)
    parameters: bytes = b""

    def send(
        self, command: int, device: int, *, data: int = 0, buffer: bytes = b"", legacy: bool = False, limit_ms: int = 0
    ) -> bytes:
        self.sent.append(Command(command))
        if command == Command.GET_FEATURES:
            return bytes(8)
        if command == Command.ADD_DEV:
            self.info = attrs.evolve(DeviceInfo.parse(buffer), device=0)
        if command == Command.SET_PARAMS:
            self.parameters = buffer
        if self.info is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        info = attrs.asdict(self.info)
        del info["state"]
        return _ublk.device_info(**info)

    def waiting(self, info: DeviceInfo) -> Ublk:
        """It has this device, without a server."""
        ublk = Ublk(self)
        ublk.devices = lambda names=None: [attrs.evolve(info, state=State.QUIESCED)]  # type: ignore[method-assign]
        return ublk


@pytest.fixture
async def namespace() -> AsyncIterator[nvme_async.Namespace]:
    async with nvme_async.open("emulated:size=16MiB,block=512") as controller:
        yield controller.namespaces[1]


@pytest.fixture
def memory_file(monkeypatch: pytest.MonkeyPatch) -> None:
    if not may_lock_much():
        pytest.skip("each queue's ring counts as locked memory")

    def open_node(path: str) -> int:
        fd = os.memfd_create("ublkc")
        os.truncate(fd, 1 << 20)
        return fd

    monkeypatch.setattr(module, "_open_node", open_node)


def test_limits_are_those_of_the_specification_and_of_the_kernel(namespace: nvme_async.Namespace) -> None:
    ublk = Ublk(Kernel())
    for options, message in [
        ({"queues": 0, "depth": 1}, "queues is 0, outside of 1 to 64"),
        ({"queues": 1, "depth": 1025}, "depth is 1025, outside of 1 to 1024"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            module.BlockDevice(namespace, ublk, read_only=False, **options)


async def test_what_the_kernel_refuses_ends_the_device_and_leaves_nothing(
    namespace: nvme_async.Namespace, memory_file: None
) -> None:
    kernel = Kernel()
    used = namespace.controller.inspect()["memory"]
    with pytest.raises(DeviceError, match="the kernel refused a tag: Operation not supported"):
        await block_device(namespace, queues=2, depth=8, ublk=Ublk(kernel))
    sequence = [Command.GET_FEATURES, Command.ADD_DEV, Command.SET_PARAMS, Command.STOP_DEV, Command.DEL_DEV]
    assert kernel.sent == sequence
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ublk-")]
    assert not module._abandoned
    assert kernel.info is not None
    assert (kernel.info.depth, kernel.info.max_io_bytes) == (8 + module.SPARE, 128 << 10)
    slots = [slot for pool in namespace.controller.inspect()["memory"]["pools"] for slot in pool.get("slots", [])]
    assert not [slot for slot in slots if slot["tag"] == module.TAG | 1], used
    assert await namespace.read(0, 8) == bytes(4096)


async def test_a_queue_without_a_ring_is_an_error_with_the_limit(
    namespace: nvme_async.Namespace, memory_file: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    kernel = Kernel()
    monkeypatch.setattr(_ublk, "Queue", refused)
    with pytest.raises(DeviceError, match=r"no ring for queue 0: Cannot allocate memory .*ulimit -l"):
        await block_device(namespace, queues=2, depth=8, ublk=Ublk(kernel))
    assert kernel.sent[-2:] == [Command.STOP_DEV, Command.DEL_DEV]


async def test_a_device_that_cannot_be_recovered_stays_for_the_next_process(
    namespace: nvme_async.Namespace, memory_file: None
) -> None:
    info = DeviceInfo(
        device=0,
        queues=2,
        depth=12,
        state=State.QUIESCED,
        pid=1,
        max_io_bytes=65536,
        flags=int(RECOVERABLE),
        mark=module.mark_of(namespace),
    )
    kernel = Kernel(info)
    with pytest.raises(DeviceError, match="Operation not supported"):
        await block_device(namespace, recover=True, ublk=kernel.waiting(info))
    assert kernel.sent[1:] == [Command.START_USER_RECOVERY]
    for changed, message in [
        ({"mark": info.mark ^ 1}, "/dev/ublkb0 is not an export of this namespace in its present format"),
        ({"flags": 0}, "/dev/ublkb0 was made without recovery"),
        ({"max_io_bytes": 1 << 20}, "/dev/ublkb0 has requests of 1048576 bytes, over 131072"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            await block_device(namespace, recover=0, ublk=kernel.waiting(attrs.evolve(info, **changed)))
    with pytest.raises(ConfigurationError, match="there is no /dev/ublkb7 to recover"):
        await block_device(namespace, recover=7, ublk=kernel.waiting(info))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ublk-")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["emulated:size=1MiB"], "modprobe ublk_drv"),
        (["--list"], "or serve NBD with --nbd PATH"),
        (["--stop", "/dev/sda"], "'/dev/sda' is no block device of ublk"),
        ([], "DEVICE is missing"),
        (["emulated:size=1MiB", "--nbd", "x", "--recover"], "--recover and --leave are of block devices"),
    ],
)
def test_the_command_says_what_is_missing(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ublk_module, "CONTROL", tmp_path / "ublk-control")
    result = CliRunner().invoke(export, words)
    assert result.exit_code
    assert message in f"{result.output} {result.exception}"


async def test_the_disk_gets_the_size_of_its_namespace(
    namespace: nvme_async.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(size_module, "SYSFS", tmp_path)
    shown = tmp_path / "ublkb0/size"
    shown.parent.mkdir()
    shown.write_text(f"{namespace.nbytes // 512}\n")
    sizes: asyncio.Queue[int] = asyncio.Queue()

    class Resizing(Kernel):
        def send(self, command: int, device: int, *, data: int = 0, **options: Any) -> bytes:
            if command == Command.UPDATE_SIZE:
                shown.write_text(f"{data}\n")
                loop.call_soon_threadsafe(sizes.put_nowait, data * 512)
                return b""
            return super().send(command, device, data=data, **options)

    loop = asyncio.get_running_loop()
    ublk = Ublk(Resizing())
    info = DeviceInfo(
        device=0, queues=1, depth=8, state=State.LIVE, pid=1, max_io_bytes=4096, flags=int(Feature.UPDATE_SIZE), mark=0
    )
    mark = module.mark_of(namespace)
    following = asyncio.create_task(size_module.DiskSize(namespace, ublk, info, []).follow())
    faults = namespace.controller.device.emulator.faults
    for size in (32 << 20, 8 << 20):
        faults.resize_namespace(1, size)
        assert await asyncio.wait_for(sizes.get(), 60) == size
    assert module.mark_of(namespace) == mark  # its successor may serve it
    following.cancel()
    old = size_module.DiskSize(namespace, ublk, attrs.evolve(info, flags=0), [])
    shown.write_text("1\n")
    await old.update()
    await old.update()
    assert caplog.text.count("/dev/ublkb0 keeps its size: this kernel can't resize it") == 1


def test_the_mark_is_of_the_namespace_and_its_format(namespace: nvme_async.Namespace) -> None:
    mark = module.mark_of(namespace)
    assert mark >> 48 == 0x4E41
    assert mark == module.mark_of(namespace)
