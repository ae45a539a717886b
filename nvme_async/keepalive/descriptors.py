"""The identity of a descriptor's file, which is the same in every process that has a duplicate.

A bundle with mixed-up descriptors of two controllers would ring the wrong one's doorbells.
"""

from __future__ import annotations

import os


def identity(fd: int) -> str:
    """The identity of the open file; empty if unknown (an anonymous file that isn't an eventfd,
    or no /proc).
    """
    try:
        anonymous = os.readlink(f"/proc/self/fd/{fd}").startswith("anon_inode:")
    except OSError:
        return ""
    if not anonymous:
        status = os.fstat(fd)
        return f"{status.st_dev:x}:{status.st_ino:x}"
    # One inode for all of them; Linux 5.2 numbers the eventfds.
    try:
        with open(f"/proc/self/fdinfo/{fd}") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name == "eventfd-id":
                    return f"eventfd:{value.strip()}"
    except OSError:
        pass
    return ""


def mixed_up(descriptors: dict[str, int], expected: dict[str, str]) -> str | None:
    """The name of a descriptor that isn't the one saved under that name; None: all are."""
    for name, was in expected.items():
        if was and name in descriptors and identity(descriptors[name]) not in ("", was):
            return name
    return None
