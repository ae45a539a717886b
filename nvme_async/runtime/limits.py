"""Which limit of the process caused an error."""

from __future__ import annotations

import errno
import resource

from nvme_async.errors import DeviceError, OutOfDmaMemory


def shortage(error: BaseException) -> str | None:
    """The exhausted resource of the process, with its limit; None for any other error."""
    if isinstance(error, OutOfDmaMemory):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory{_limit('RLIMIT_AS')}"
    if isinstance(error, RuntimeError) and "new thread" in str(error):
        return f"{error}{_limit('RLIMIT_NPROC')}"
    if isinstance(error, DeviceError):
        cause = error.__cause__ or error.__context__
        return f"{error}" if cause is not None and shortage(cause) else None
    if not isinstance(error, OSError):
        return None
    match error.errno:
        case errno.EMFILE:
            return f"too many open files{_limit('RLIMIT_NOFILE')}"
        case errno.ENFILE:
            return "too many open files in the system (fs.file-max)"
        case errno.ENOMEM:
            return f"out of memory{_limit('RLIMIT_AS')}"
    return None


def descriptors_cut_off(came: int, most: int) -> str:
    """What a message was too much for, `came` of whose descriptors arrived before the kernel cut
    it off (MSG_CTRUNC): for the protocol's limit, or for what this process may have open.
    """
    if came >= most:
        return f"more than {most} descriptors in one message"
    return f"descriptors that exceed this process's limit of open files{_limit('RLIMIT_NOFILE')}"


def _limit(name: str) -> str:
    soft, _ = resource.getrlimit(getattr(resource, name))
    return "" if soft == resource.RLIM_INFINITY else f" ({name} is {soft})"
