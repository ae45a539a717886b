"""ublk's control device: block devices whose server is a process are made, found and removed here.

https://docs.kernel.org/block/ublk.html. Every function blocks, with a limit: call it in a thread.
The structs and the ring are C's (ext/ublk/).
"""

from __future__ import annotations

import enum
import errno
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import attrs

from nvme_async.errors import ConfigurationError, DeviceError
from nvme_async.native import _ublk

CONTROL = Path("/dev/ublk-control")
ANY = 0xFFFFFFFF
"""In place of a device's number: the kernel chooses it."""
LIMIT_MS = 10_000
"""Of a command that waits for nothing."""
STOP_LIMIT_MS = 60_000
"""Of one that waits for requests to end."""
RECOVERY_LIMIT = 40.0
"""Seconds until a server that was killed has let go of its device. Linux 6.12 may notice only after
the queue's io_timeout, which is 30 seconds.
"""
RETRY = 0.01
MAGIC = 0x4E41 << 48
"""In the mark of a device that this library has made."""


class Command(enum.IntEnum):
    GET_DEV_INFO = 0x02
    ADD_DEV = 0x04
    DEL_DEV = 0x05
    START_DEV = 0x06
    STOP_DEV = 0x07
    SET_PARAMS = 0x08
    START_USER_RECOVERY = 0x10
    END_USER_RECOVERY = 0x11
    GET_FEATURES = 0x13
    UPDATE_SIZE = 0x15


class Feature(enum.IntFlag):
    USER_RECOVERY = 1 << 3
    USER_RECOVERY_REISSUE = 1 << 4
    CMD_IOCTL_ENCODE = 1 << 6
    UPDATE_SIZE = 1 << 10
    """Linux 6.16."""


RECOVERABLE = Feature.USER_RECOVERY | Feature.USER_RECOVERY_REISSUE


class Attribute(enum.IntFlag):
    READ_ONLY = 1 << 0
    VOLATILE_CACHE = 1 << 2
    FUA = 1 << 3


class State(enum.IntEnum):
    DEAD = 0
    """Made, and not started; or stopped."""
    LIVE = 1
    QUIESCED = 2
    """Its server has ended: requests wait for the next one."""
    FAIL_IO = 3
    """Its server has ended: requests fail until the next one."""


class Sender(Protocol):
    """_ublk.Control, or a test's."""

    def send(
        self, command: int, device: int, *, data: int = 0, buffer: bytes = b"", legacy: bool = False, limit_ms: int = 0
    ) -> bytes: ...


@attrs.frozen(kw_only=True)
class DeviceInfo:
    """What the kernel says of one device."""

    device: int
    queues: int
    depth: int
    state: State
    pid: int
    """Of the server; what it was, where the server has ended."""
    max_io_bytes: int
    flags: int
    mark: int

    @property
    def path(self) -> str:
        return f"/dev/ublkb{self.device}"

    @property
    def resizable(self) -> bool:
        """Can its disk get another size?"""
        return bool(self.flags & Feature.UPDATE_SIZE)

    @property
    def ours(self) -> bool:
        """Was it made by this library?"""
        return self.mark >> 48 == MAGIC >> 48

    @property
    def served(self) -> bool:
        """Does a process serve it?"""
        return self.state is State.LIVE and os.path.exists(f"/proc/{self.pid}")

    @classmethod
    def parse(cls, data: bytes) -> DeviceInfo:
        values = _ublk.parse_device_info(data)
        return cls(state=State(values.pop("state")), **values)


def _open() -> Sender:
    try:
        file = open(CONTROL, "r+b", buffering=0)  # noqa: SIM115 - Control keeps it
    except FileNotFoundError:
        raise ConfigurationError(
            "this kernel offers no block devices from user space: `modprobe ublk_drv` (Linux 6.0 and later), or serve "
            "NBD with --nbd PATH"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{CONTROL}: {error.strerror}; a block device takes root, and --nbd PATH does without"
        ) from None
    try:
        return _ublk.Control(file)
    except OSError as error:
        file.close()
        raise ConfigurationError(
            f"no io_uring ({error.strerror}), which ublk is commanded with: see the sysctl kernel.io_uring_disabled"
        ) from None


class Ublk:
    """The control device. Threads: any, one at a time.

    Raises DeviceError with the kernel's reason, and ConfigurationError from open().
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self.legacy = False
        """Command numbers as before Linux 6.4."""
        try:
            data = self._send(Command.GET_FEATURES, 0, buffer=bytes(8))
            self.features = Feature(int.from_bytes(data, "little") & sum(Feature))
        except OSError:  # Linux 6.5 has it
            self.legacy = True
            self.features = RECOVERABLE

    @classmethod
    def open(cls) -> Ublk:
        """ConfigurationError without the module, root or io_uring."""
        return cls(_open())

    def _send(
        self, command: Command, device: int, *, data: int = 0, buffer: bytes = b"", limit_ms: int = LIMIT_MS
    ) -> bytes:
        with self._lock:
            return self._sender.send(command, device, data=data, buffer=buffer, legacy=self.legacy, limit_ms=limit_ms)

    def _checked(self, what: str, command: Command, device: int, **options: int | bytes) -> bytes:
        try:
            return self._send(command, device, **options)  # type: ignore[arg-type]
        except OSError as error:
            raise DeviceError(f"ublk device {device}: {what}: {error.strerror or error}") from error

    def add(self, *, queues: int, depth: int, max_io_bytes: int, mark: int) -> DeviceInfo:
        """Makes a device that can be recovered; its queues may be fewer than asked for. It has a
        /dev/ublkcN for its server, and no disk before start().
        """
        flags = RECOVERABLE if self.legacy else RECOVERABLE | Feature.CMD_IOCTL_ENCODE
        flags |= self.features & Feature.UPDATE_SIZE
        info = _ublk.device_info(
            queues=queues,
            depth=depth,
            max_io_bytes=max_io_bytes,
            device=ANY,
            pid=os.getpid(),
            flags=int(flags),
            mark=mark,
        )
        try:
            return DeviceInfo.parse(self._send(Command.ADD_DEV, ANY, buffer=info))
        except OSError as error:
            raise DeviceError(
                f"the kernel makes no ublk device with {queues} queues of {depth}: {error.strerror or error}"
            ) from error

    def set_parameters(self, device: int, parameters: bytes) -> None:
        self._checked("its parameters were refused", Command.SET_PARAMS, device, buffer=parameters)

    def start(self, device: int) -> None:
        """Its disk appears. Every queue's tags have been offered."""
        self._checked("not started", Command.START_DEV, device, data=os.getpid(), limit_ms=STOP_LIMIT_MS)

    def set_size(self, device: int, nbytes: int) -> None:
        """Its disk has this size from now on, and who has it open is notified. For devices with
        UPDATE_SIZE.
        """
        self._checked("not resized", Command.UPDATE_SIZE, device, data=nbytes // 512)

    def stop(self, device: int) -> None:
        """Its disk is removed, whether it is in use or not: requests that its server does not
        answer any more fail.
        """
        self._checked("not stopped", Command.STOP_DEV, device, limit_ms=STOP_LIMIT_MS)

    def delete(self, device: int) -> None:
        """Waits until its server has closed it."""
        self._checked("not deleted", Command.DEL_DEV, device, limit_ms=STOP_LIMIT_MS)

    def begin_recovery(self, device: int, *, limit: float = RECOVERY_LIMIT) -> None:
        """Waits at most `limit` seconds until the dead server has let go of the device."""
        end = time.monotonic() + limit
        while True:
            try:
                self._send(Command.START_USER_RECOVERY, device)
                return
            except OSError as error:
                # A server that died after this command, and before its first FETCH, has left
                # nothing to be reset.
                if error.errno == errno.EINVAL and self.info(device).state is State.QUIESCED:
                    return
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise DeviceError(
                        f"ublk device {device} can't be recovered: {error.strerror or error}"
                        + (f"; process {self.info(device).pid} has it" if error.errno == errno.EBUSY else "")
                    ) from error
            time.sleep(RETRY)

    def end_recovery(self, device: int) -> None:
        """Its requests go to this process now; those that the dead server had not answered come
        again. Every queue's tags have been offered.
        """
        self._checked("not recovered", Command.END_USER_RECOVERY, device, data=os.getpid(), limit_ms=STOP_LIMIT_MS)

    def info(self, device: int) -> DeviceInfo:
        return DeviceInfo.parse(self._checked("no information", Command.GET_DEV_INFO, device, buffer=bytes(64)))

    def devices(self, names: Callable[[], list[str]] = lambda: os.listdir("/dev")) -> list[DeviceInfo]:
        """All devices, of other programs too, by number."""
        found = []
        for number in sorted(int(name[5:]) for name in names() if re.fullmatch(r"ublkc\d+", name)):
            try:
                found.append(self.info(number))
            except DeviceError:  # removed meanwhile, or another user's
                continue
        return found
