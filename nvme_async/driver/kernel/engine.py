"""How commands are sent to the kernel: io_uring, or threads if that may not be used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nvme_async.driver.options import Options
from nvme_async.errors import ConfigurationError
from nvme_async.native import _kernel

_SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")


def _disabled() -> str:
    """Why io_uring_setup() fails with EPERM."""
    try:
        value = _SYSCTL.read_text().strip()
    except OSError:
        value = "0"
    if value == "2":
        return "the sysctl kernel.io_uring_disabled is 2: no process may use it"
    if value == "1":
        return (
            "the sysctl kernel.io_uring_disabled is 1: only processes with CAP_SYS_ADMIN or in "
            "kernel.io_uring_group may use it"
        )
    return "a seccomp filter or security module forbids it, as container runtimes do"


def why_no_ring(*, passthrough: bool = False, io_poll: bool = False) -> str:
    """Why this process can't use such an io_uring, as text; empty if it can."""
    code = _kernel.try_ring(passthrough=passthrough, iopoll=io_poll)
    if code == 0:
        return ""
    if code == errno.EPERM:
        return f"io_uring: {_disabled()}"
    if code == errno.ENOSYS:
        return "io_uring: this kernel does not have it or is older than 5.5, or a seccomp filter hides it"
    if code == errno.EINVAL and passthrough:
        return "io_uring: this kernel is older than 5.19 and has no NVMe passthrough"
    if code == errno.EINVAL:
        return "io_uring: this kernel does not support the required flags"
    if code == errno.ENOMEM:
        return "io_uring: out of memory, or over the limit of locked memory (`ulimit -l`)"
    return f"io_uring: {os.strerror(code)}"


def choose(options: Options, *, passthrough: bool) -> str:
    """Empty: io_uring is used. Otherwise the reason for threads. ConfigurationError if the
    options require something unavailable.
    """
    if options.engine == "threads":
        if options.io_poll:
            raise ConfigurationError("io_poll needs io_uring, and engine is 'threads'")
        return "engine is 'threads'"
    reason = why_no_ring(passthrough=passthrough, io_poll=options.io_poll)
    if reason and (options.engine == "io_uring" or options.io_poll):
        raise ConfigurationError(f"engine is {options.engine!r}, io_poll {options.io_poll}: {reason}")
    return reason
