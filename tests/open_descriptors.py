"""The open descriptors of this process, for tests of what stays open."""

from __future__ import annotations

import os
import resource

_RING = "anon_inode:[io_uring]"


def _rings_are_certain() -> bool:
    """The kernel charges rings to the user's limit of locked memory, gives it back late, and other
    processes of the user share it. With a low limit some controllers have a ring and others do
    without.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return os.geteuid() == 0 or soft == resource.RLIM_INFINITY or soft >= 4 << 20


def open_descriptors() -> list[str]:
    """What each refers to. Without the rings if it is uncertain whether there are any."""
    found = []
    certain = _rings_are_certain()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        if certain or target != _RING:
            found.append(target)
    return found
