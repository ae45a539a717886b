"""ublk's structs byte by byte, and the control of devices on a fake of the kernel's side."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

import attrs
import pytest

from nvme_async.errors import ConfigurationError, DeviceError
from nvme_async.export import ublk as module
from nvme_async.export.ublk import MAGIC, Command, DeviceInfo, Feature, State, Ublk
from nvme_async.native import _ublk

INFO = struct.Struct("<HHHHIIiIQQIIQQ")  # linux/ublk_cmd.h: struct ublksrv_ctrl_dev_info
PARAMETERS = struct.Struct("<IIIBBBBIIQQIIIIHH4x")  # struct ublk_params: basic, discard


def test_device_information_is_the_kernels_struct() -> None:
    data = _ublk.device_info(
        queues=2, depth=68, max_io_bytes=131072, device=0xFFFFFFFF, pid=77, flags=0x58, mark=0x1122334455667788
    )
    assert data == INFO.pack(2, 68, 0, 0, 131072, 0xFFFFFFFF, 77, 0, 0x58, 0x1122334455667788, 0, 0, 0, 0)
    answer = INFO.pack(1, 68, 2, 0, 131072, 5, 78, 0, 0x5A, 1, 0, 0, 0, 0)
    assert DeviceInfo.parse(answer) == DeviceInfo(
        device=5, queues=1, depth=68, state=State.QUIESCED, pid=78, max_io_bytes=131072, flags=0x5A, mark=1
    )
    with pytest.raises(ValueError, match="63 bytes"):
        _ublk.parse_device_info(answer[:-1])


def test_parameters_are_the_kernels_struct() -> None:
    values = {
        "attributes": 0xC,
        "block_shift": 9,
        "physical_shift": 12,
        "optimal_shift": 17,
        "max_sectors": 256,
        "sectors": 1 << 33,
        "discard_granularity": 4096,
        "discard_sectors": 1 << 22,
        "zero_sectors": 128,
    }
    basic = (0xC, 9, 12, 17, 12, 256, 0, 1 << 33, 0)
    assert _ublk.parameters(**values) == PARAMETERS.pack(64, 3, *basic, 0, 4096, 1 << 22, 128, 1, 0)
    without = {**values, "discard_sectors": 0, "zero_sectors": 0}
    assert _ublk.parameters(**without) == PARAMETERS.pack(64, 1, *basic, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (0x000, None),
        (0x001, "EOPNOTSUPP"),
        (0x081, "ENOSPC"),
        (0x080, "EREMOTEIO"),
        (0x281, "ENODATA"),
        (0x282, "EILSEQ"),
        (0x083, "EBADE"),
        (0x371, "EIO"),
        (0x2281, "ENODATA"),  # More and Do Not Retry are no part of the code
    ],
)
def test_status_becomes_the_error_that_linux_makes_of_it(status: int, name: str | None) -> None:
    assert _ublk.error_of(status) == (getattr(errno, name) if name else 0)


@attrs.define
class Kernel:
    """The kernel's side of /dev/ublk-control, for one process after another."""

    devices: dict[int, DeviceInfo] = attrs.field(factory=dict)
    sent: list[Command] = attrs.field(factory=list)
    refuse: Callable[[Command, int], int] = lambda command, device: 0
    has_features: bool = True

    def send(
        self, command: int, device: int, *, data: int = 0, buffer: bytes = b"", legacy: bool = False, limit_ms: int = 0
    ) -> bytes:
        command = Command(command)
        self.sent.append(command)
        assert legacy is (not self.has_features) or command is Command.GET_FEATURES
        if error := self.refuse(command, device):
            raise OSError(error, os.strerror(error))
        if command is Command.GET_FEATURES:
            if not self.has_features:
                raise OSError(errno.EOPNOTSUPP, "no")
            return (0x7FF).to_bytes(8, "little")
        if command is Command.ADD_DEV:
            assert device == 0xFFFFFFFF
            info = attrs.evolve(DeviceInfo.parse(buffer), device=len(self.devices), queues=1)
            self.devices[info.device] = info
            return self.bytes_of(info)
        if device not in self.devices:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if command is Command.GET_DEV_INFO:
            return self.bytes_of(self.devices[device])
        if command in (Command.START_DEV, Command.END_USER_RECOVERY):
            self.devices[device] = attrs.evolve(self.devices[device], state=State.LIVE, pid=data)
        if command is Command.DEL_DEV:
            del self.devices[device]
        return buffer

    @staticmethod
    def bytes_of(info: DeviceInfo) -> bytes:
        words = (info.queues, info.depth, info.state, 0, info.max_io_bytes, info.device, info.pid, 0)
        return INFO.pack(*words, info.flags, info.mark, 0, 0, 0, 0)


def test_a_device_is_made_recoverable_started_and_removed() -> None:
    kernel = Kernel()
    ublk = Ublk(kernel)
    made = ublk.add(queues=4, depth=68, max_io_bytes=131072, mark=MAGIC | 5)
    assert made.flags & (Feature.USER_RECOVERY | Feature.USER_RECOVERY_REISSUE) == 0x18
    assert (made.path, made.queues, made.ours, made.served) == ("/dev/ublkb0", 1, True, False)
    ublk.start(0)
    [info] = ublk.devices(lambda: ["null", "ublkc0", "ublkc3", "ublkb0", "ublk-control"])
    assert (info.state, info.pid, info.served) == (State.LIVE, os.getpid(), True)
    ublk.stop(0)
    ublk.delete(0)
    assert ublk.devices(lambda: ["ublkc0"]) == []


def test_a_kernel_without_features_gets_its_old_command_numbers() -> None:
    ublk = Ublk(Kernel(has_features=False))
    assert ublk.legacy
    assert ublk.add(queues=1, depth=8, max_io_bytes=4096, mark=0).flags == 0x18


def _quiesced(kernel: Kernel) -> Ublk:
    ublk = Ublk(kernel)
    ublk.add(queues=1, depth=8, max_io_bytes=4096, mark=0)
    kernel.devices[0] = attrs.evolve(kernel.devices[0], state=State.QUIESCED, pid=4711)
    return ublk


def test_recovery_waits_until_the_dead_server_has_let_go() -> None:
    busy = [errno.EBUSY] * 3
    kernel = Kernel(refuse=lambda command, _: busy.pop() if command is Command.START_USER_RECOVERY and busy else 0)
    ublk = _quiesced(kernel)
    ublk.begin_recovery(0)
    assert kernel.sent.count(Command.START_USER_RECOVERY) == 4


def test_recovery_has_a_limit_and_names_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(refuse=lambda command, _: errno.EBUSY if command is Command.START_USER_RECOVERY else 0)
    with pytest.raises(DeviceError, match="device 0 can't be recovered: Device or resource busy; process 4711 has it"):
        _quiesced(kernel).begin_recovery(0, limit=0)


def test_a_recovery_goes_on_where_the_one_before_has_died() -> None:
    kernel = Kernel(refuse=lambda command, _: errno.EINVAL if command is Command.START_USER_RECOVERY else 0)
    ublk = _quiesced(kernel)
    ublk.begin_recovery(0)
    ublk.end_recovery(0)
    assert kernel.devices[0].pid == os.getpid()
    kernel.devices[0] = attrs.evolve(kernel.devices[0], state=State.DEAD)
    with pytest.raises(DeviceError, match="Invalid argument"):
        ublk.begin_recovery(0)


def test_what_the_kernel_refuses_is_named() -> None:
    ublk = Ublk(Kernel(refuse=lambda command, _: errno.ENOSPC if command is Command.ADD_DEV else 0))
    with pytest.raises(DeviceError, match="no ublk device with 2 queues of 8: No space left"):
        ublk.add(queues=2, depth=8, max_io_bytes=4096, mark=0)
    with pytest.raises(DeviceError, match="ublk device 9: not stopped: No such device"):
        ublk.stop(9)


def test_without_the_module_the_way_out_is_one_sentence(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONTROL", tmp_path / "ublk-control")
    with pytest.raises(ConfigurationError, match=r"`modprobe ublk_drv` \(Linux 6.0 and later\), or .* --nbd PATH$"):
        Ublk.open()


def test_a_file_that_is_no_control_device_is_refused_by_the_kernel(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with open(tmp_path / "file", "r+b", buffering=0) as file:
        try:
            control = _ublk.Control(file)
        except OSError as error:
            pytest.skip(f"no io_uring here: {error}")
        with pytest.raises(OSError, match=r"."):
            control.send(Command.GET_DEV_INFO, 0, buffer=bytes(64))
        with pytest.raises(ValueError, match="513 bytes is over 512"):
            control.send(Command.GET_DEV_INFO, 0, buffer=bytes(513))


VALUES = {
    "number": 0,
    "iova": 0,
    "offset": None,
    "depth": 8,
    "cell_nbytes": 4096,
    "nbytes": 1 << 20,
    "nsid": 1,
    "block_size": 512,
    "zero_blocks": 0,
    "discard_blocks": 0,
    "read_only": False,
    "legacy": False,
}


def test_a_forked_child_keeps_nothing_of_a_queue() -> None:
    """What it kept would keep the device from the next server."""
    fd = os.memfd_create("ublkc-of-a-test")
    os.truncate(fd, 4096)
    try:
        queue = _ublk.Queue(fd, bytearray(8 * 4096), **VALUES)  # type: ignore[arg-type]
    except OSError as error:
        pytest.skip(f"no io_uring here: {error}")
    finally:
        os.close(fd)
    with open("/proc/self/maps") as maps:
        assert "ublkc-of-a-test" in maps.read()
    child = os.fork()
    if not child:
        try:
            with open("/proc/self/maps") as maps:
                mapped = "ublkc-of-a-test" in maps.read()
            ring = queue.fd
            queue.forget()
            os._exit(1 if mapped or queue.fd != -1 or os.path.exists(f"/proc/self/fd/{ring}") else 0)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.path.exists(f"/proc/self/fd/{queue.fd}")
    queue.close()
    with open("/proc/self/maps") as maps:
        assert "ublkc-of-a-test" not in maps.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "a depth of 0"),
        ({"depth": 9}, "32768 bytes don't hold 9 buffers of 4096"),
        ({"cell_nbytes": 2048}, "buffers of 2048 bytes"),
        ({"block_size": 520}, "don't hold blocks of 520"),
    ],
)
def test_a_queue_refuses_memory_that_its_tags_do_not_fit(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ublk.Queue(-1, bytearray(8 * 4096), **{**VALUES, **change})  # type: ignore[arg-type]
