"""Which file backs a piece of this process's memory, so that it can be passed to another
process.
"""

from __future__ import annotations

import fcntl
import os


def shared_backing(address: int, nbytes: int) -> tuple[int, int] | None:
    """(descriptor, file offset) behind [address, address + nbytes), or None if it isn't one shared,
    writable file mapping.

    memfds, tmpfs and hugetlbfs files, and anonymous MAP_SHARED memory (mmap.mmap(-1, n)) have one;
    the heap has none. The caller must close the descriptor.

    Any process finds a file that it still has open for reading and writing, as Python's mmap
    objects have. Others, including anonymous MAP_SHARED memory, require CAP_SYS_ADMIN or
    CAP_CHECKPOINT_RESTORE; without them the result is None.
    """
    with open("/proc/self/maps", encoding="ascii", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            begin, end = (int(part, 16) for part in fields[0].split("-"))
            if not begin <= address < end:
                continue
            if address + nbytes > end or fields[1][1] != "w" or fields[1][3] != "s":
                return None
            try:
                fd = os.open(f"/proc/self/map_files/{begin:x}-{end:x}", os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                found = _open_here(fields[3], int(fields[4]))
                if found is None:
                    return None
                fd = found
            return fd, int(fields[2], 16) + (address - begin)
    return None


def _open_here(device: str, inode: int) -> int | None:
    """A copy of one of this process's descriptors of that file; `device` as in maps, 00:01."""
    major, minor = (int(part, 16) for part in device.split(":"))
    for name in os.listdir("/proc/self/fd"):
        try:
            fd = fcntl.fcntl(int(name), fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError:  # closed by another thread, or the listing's own
            continue
        found = os.fstat(fd)
        same = (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino) == (major, minor, inode)
        if same and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
            return fd
        os.close(fd)
    return None
