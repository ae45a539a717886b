"""Files, block devices and NVMe nodes: opened, measured, and checked for other users.

Everything here may block: from a thread.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
import threading
from pathlib import Path

import attrs

from nvme_async.device.pci import System
from nvme_async.device.pci_use import uses_of_block
from nvme_async.driver.options import Options
from nvme_async.errors import ConfigurationError, ControllerGone, DeviceError
from nvme_async.native import _kernel

log: logging.Logger = logging.getLogger("nvme_async")

BLKGETSIZE64, BLKSSZGET, BLKROGET = 0x8008_1272, 0x1268, 0x125E
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
LARGEST_BLOCK = 4096


@attrs.define(eq=False)
class Node:
    """An open node or file. close() takes effect when the last use() has ended: descriptor
    numbers are reused.

    Attributes:
        fd: its descriptor.
        path: its name.
        kind: of native/_kernel.KINDS; "controller" for /dev/nvme0.
        block_size, nbytes: in bytes; 0 for controllers and passthrough, whose Identify says so.
        read_only: why nothing may be written; empty: it may.
        direct: bypasses the page cache. memory_align: the alignment of memory that this requires.
        notes: deviations from the request.
    """

    fd: int
    path: str
    kind: str
    block_size: int = 0
    nbytes: int = 0
    read_only: str = ""
    direct: bool = False
    memory_align: int = 1
    nsid: int = 1
    notes: list[str] = attrs.field(factory=list)
    claim: int = -1  # of a block device with O_EXCL: no file system is mounted while it is held
    _users: int = 0
    _closing: bool = False
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def use(self) -> None:
        with self._lock:
            if self._closing:
                raise ControllerGone(f"{self.path} is closed")
            self._users += 1

    def done(self) -> None:
        with self._lock:
            self._users -= 1
            self._end()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            self._end()

    def _end(self) -> None:
        if not self._closing or self._users:
            return
        for fd in (self.fd, self.claim):
            if fd >= 0:
                os.close(fd)
        self.fd = self.claim = -1

    def measure_again(self) -> None:
        """A file may have grown or shrunk."""
        self.use()
        try:
            status = os.fstat(self.fd)
            self.nbytes = _number(self.fd, BLKGETSIZE64, "=Q") if stat.S_ISBLK(status.st_mode) else status.st_size
        finally:
            self.done()

    @property
    def blocks(self) -> int:
        return self.nbytes // self.block_size if self.block_size else 0


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ControllerGone(f"there is no {path}") from None
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise ControllerGone(f"{path}: the device is gone ({error.strerror})") from error
        raise


def _device_error(path: str, error: OSError) -> DeviceError:
    failure = DeviceError(f"{path}: {error.strerror}")
    failure.errno = error.errno
    return failure


def _open_for(path: str, options: Options, flags: int, claimed: str) -> tuple[int, str]:
    """(descriptor, why it is read-only). claimed: existing users."""
    reason = "the option read_only is set" if options.read_only else ""
    if claimed and not options.allow_mounted_write:
        reason = reason or f"{claimed}; the option allow_mounted_write permits writes"
    try:
        if not reason:
            try:
                return _open(path, flags | os.O_RDWR), ""
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise
                reason = f"{path} may not be opened for writing: {error.strerror}"
        return _open(path, flags | os.O_RDONLY), reason
    except OSError as error:
        if isinstance(error, ControllerGone):
            raise
        raise _device_error(path, error) from error


def _number(fd: int, request: int, size: str) -> int:
    value = fcntl.ioctl(fd, request, bytes(8))
    return int(struct.unpack_from(size, value)[0])


def _claim(block: str, options: Options) -> tuple[int, str]:
    """(a descriptor that keeps others from mounting it, or -1; existing users)."""
    if options.read_only:
        return -1, ""
    used = uses_of_block(System(), block)
    if used:
        return -1, "; ".join(str(use) for use in used[:3])
    try:
        return os.open(f"/dev/{block}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC), ""
    except OSError as error:
        if error.errno == errno.EBUSY:
            return -1, f"/dev/{block} is opened exclusively by another process"
        return -1, ""  # this process may not query it


def block_name(path: str) -> str:
    """The kernel's name of the block device that a path leads to; of ng0n1 that is nvme0n1."""
    name = os.path.basename(os.path.realpath(path))
    return f"nvme{name[2:]}" if name.startswith("ng") else name


def _is_power(number: int) -> bool:
    return number > 0 and not number & (number - 1)


def _go_direct(fd: int, path: str, options: Options, smallest: int) -> tuple[bool, int, int, str]:
    """(O_DIRECT is on, alignment of memory, alignment of offsets, why it is not on)."""
    if options.direct == "never":
        return False, 1, 1, ""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        known = _kernel.direct_alignment(fd)
        memory, offset = known or (max(512, smallest), smallest)
        if not offset:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
            raise OSError(errno.EINVAL, "the file system does not support direct I/O for this file")
        return True, max(1, memory), offset, ""
    except OSError as error:
        reason = f"{path}: no O_DIRECT ({error.strerror}); I/O goes through the page cache"
        if options.direct == "always":
            raise ConfigurationError(f"direct is 'always': {reason}") from error
        return False, 1, 1, reason


def open_file(path: str, options: Options, *, kind: str = "file") -> Node:
    """A regular file or a block device. ControllerGone if it isn't there, ConfigurationError if
    it is something else, DeviceError if it can't be opened.
    """
    try:
        mode = os.stat(path)
    except FileNotFoundError:
        raise ControllerGone(f"there is no {path}") from None
    except OSError as error:
        raise _device_error(path, error) from error
    is_block = stat.S_ISBLK(mode.st_mode)
    if not is_block and not stat.S_ISREG(mode.st_mode):
        raise ConfigurationError(f"{path} is neither a file nor a block device")
    claim, used = _claim(block_name(path), options) if is_block else (-1, "")
    try:
        fd, read_only = _open_for(path, options, 0, used)
    except BaseException:
        if claim >= 0:
            os.close(claim)
        raise
    node = Node(fd, path, kind, read_only=read_only, claim=claim)
    try:
        _measure(node, options, is_block)
    except BaseException:
        node.close()
        raise
    if node.read_only and not options.read_only:
        log.warning("%s: opened read-only: %s", path, node.read_only)
    return node


def _measure(node: Node, options: Options, is_block: bool) -> None:
    if is_block:
        smallest = _number(node.fd, BLKSSZGET, "=i")
        node.nbytes = _number(node.fd, BLKGETSIZE64, "=Q")
        if _number(node.fd, BLKROGET, "=i") and not node.read_only:
            node.read_only = f"{node.path} is a read-only device"
        preferred = smallest
    else:
        status = os.fstat(node.fd)
        node.nbytes, smallest, preferred = status.st_size, 512, status.st_blksize
    node.direct, node.memory_align, offset, note = _go_direct(node.fd, node.path, options, smallest)
    if note:
        node.notes.append(note)
        log.info("%s", note)
    smallest = max(smallest, offset if _is_power(offset) else 4096)
    if not _is_power(node.memory_align):
        node.memory_align = 4096
    node.block_size = _block_size(node, options, smallest, preferred)
    if node.blocks < 1:
        raise ConfigurationError(f"{node.path} has {node.nbytes} bytes, less than one block of {node.block_size}")
    if node.nbytes % node.block_size:
        node.notes.append(
            f"the last {node.nbytes % node.block_size} bytes are less than a block, so they can't be accessed"
        )


def _block_size(node: Node, options: Options, smallest: int, preferred: int) -> int:
    wanted = options.block_size
    if wanted:
        if wanted < smallest:
            raise ConfigurationError(f"{node.path}: block_size is {wanted}, but I/O must be aligned to {smallest}")
        return wanted
    preferred = min(preferred, LARGEST_BLOCK) if _is_power(preferred) else smallest
    return preferred if preferred > smallest and node.nbytes % preferred == 0 else smallest


def open_passthrough(path: str, options: Options) -> Node:
    """/dev/ng0n1; its block device is claimed while it may be written."""
    block = block_name(path)
    claim, used = _claim(block, options) if os.path.exists(f"/dev/{block}") else (-1, "")
    try:
        fd, read_only = _open_for(path, options, 0, used)
    except BaseException:
        if claim >= 0:
            os.close(claim)
        raise
    node = Node(fd, path, "passthrough", read_only=read_only, claim=claim)
    try:
        if not stat.S_ISCHR(os.fstat(fd).st_mode):
            raise ConfigurationError(f"{path} is not a character device")
        node.nsid = _kernel.namespace_id(fd)
    except OSError as error:
        node.close()
        raise _device_error(path, error) from error
    except BaseException:
        node.close()
        raise
    if node.read_only and not options.read_only:
        log.warning("%s: opened read-only: %s", path, node.read_only)
    return node


def open_controller(path: str) -> Node:
    """/dev/nvme0, for admin commands."""
    try:
        return Node(_open(path, os.O_RDWR), path, "controller")
    except OSError as error:
        if isinstance(error, ControllerGone):
            raise
        if error.errno not in _READ_ONLY:
            raise _device_error(path, error) from error
    try:
        return Node(_open(path, os.O_RDONLY), path, "controller", read_only="it may only be opened for reading")
    except OSError as error:
        raise _device_error(path, error) from error


def nsid_of(node: Node) -> int:
    """Of a namespace's block device or a partition of it."""
    try:
        return _kernel.namespace_id(node.fd)
    except OSError as error:
        node.close()
        raise _device_error(node.path, error) from error


# -- sysfs


def controller_of(path: str, root: Path = Path("/")) -> str:
    """The controller node of a namespace's node; with several paths the first that is live.
    ControllerGone.
    """
    name = os.path.basename(path)
    kind = "nvme-generic" if name.startswith("ng") else "block"
    above = (root / "sys/class" / kind / name / "device").resolve()
    if above.name.startswith("nvme-subsys"):
        paths = sorted(entry for entry in above.glob("nvme[0-9]*") if entry.name[4:].isdigit())
        live = [entry for entry in paths if _state(entry) == "live"] or paths
        if live:
            return f"/dev/{live[0].name}"
    if above.name.startswith("nvme") and above.name[4:].isdigit():
        return f"/dev/{above.name}"
    raise ControllerGone(f"{path}: its controller is unknown")


def namespace_nodes(controller: str, root: Path = Path("/")) -> list[str]:
    """The nodes of a controller's namespaces: ng0n1 where the kernel has such (5.13), else
    nvme0n1.
    """
    name = os.path.basename(controller)
    found = {}
    for kind, pattern in (("block", "nvme*n*"), ("nvme-generic", "ng*n*")):
        for entry in (root / "sys/class" / kind).glob(pattern):
            above = (entry / "device").resolve()
            if (entry / "partition").exists() or (kind == "block" and _text(entry / "hidden") == "1"):
                continue
            if above.name == name or (above / name).exists():
                found[entry.name.removeprefix("nvme").removeprefix("ng")] = f"/dev/{entry.name}"
    return sorted(found.values())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _state(controller: Path) -> str:
    return _text(controller / "state")


def controller_state(controller: str, root: Path = Path("/")) -> str:
    """live, resetting, connecting, dead …; empty if the kernel knows none of that name."""
    return _state(root / "sys/class/nvme" / os.path.basename(controller))


def most_bytes(block: str, root: Path = Path("/")) -> int:
    """Of one passthrough command: what the queue takes in one request, with each page elsewhere.
    0: unknown.
    """
    queue = root / "sys/class/block" / block / "queue"
    kib, segments = _text(queue / "max_hw_sectors_kb"), _text(queue / "max_segments")
    if not kib.isdigit() or not segments.isdigit():
        return 0
    return min(int(kib) << 10, max(1, int(segments) - 1) * 4096)
