"""Which file a piece of this process's memory comes from, so that another process can be given it."""

from __future__ import annotations

import os


def shared_backing(address: int, nbytes: int) -> tuple[int, int] | None:
    """(descriptor, file offset) behind [address, address + nbytes), or None if it isn't one shared,
    writable file mapping.

    memfds, tmpfs and hugetlbfs files, and anonymous MAP_SHARED memory (mmap.mmap(-1, n)) have one;
    the heap has none. The descriptor is the caller's to close. Opening it takes CAP_SYS_ADMIN or
    CAP_CHECKPOINT_RESTORE; without, the answer is None.
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
                return None
            return fd, int(fields[2], 16) + (address - begin)
    return None
