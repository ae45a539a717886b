"""ioengine=: this program's two engines, and the names that existing job files use.

In fio an engine is an interface of the kernel. Here nothing goes through the kernel, so all of them
become one await per I/O; engines with one I/O at a time have one here too.
"""

from __future__ import annotations

from nvme_async.errors import ConfigurationError

OWN = ("await", "many")

ONE_AT_A_TIME = frozenset("sync psync vsync pvsync pvsync2 mmap splice sg".split())  # noqa: SIM905
"""fio caps their queue depth at 1."""

MAPPED = ONE_AT_A_TIME | frozenset(
    "io_uring io_uring_cmd libaio posixaio solarisaio windowsaio guasi null xnvme libblkio spdk".split()  # noqa: SIM905
)

OTHERS = frozenset(
    """
    cpuio net netsplice rdma falloc ftruncate e4defrag rbd http gfapi gfapi_async libhdfs mtd dev-dax filecreate
    filestat filedelete dircreate dirstat dirdelete libpmem ime_psync ime_psyncv ime_aio nbd libzbc exec nfs
    page_fault cpp_null pmemblk fusion-aw-sync
    libiscsi rados binject external dfs librpma_apm_server librpma_gpspm_server
    """.split()  # noqa: SIM905
)
"""Engines that don't do I/O on a block device by commands."""


def engine(text: str) -> str:
    """ "await" or "many" for a name; raises ConfigurationError for one that can be neither."""
    name = text.partition(":")[0]
    if name in OWN:
        return name
    if name in MAPPED:
        return "await"
    if name in OTHERS:
        raise ConfigurationError(f"fio's engine {name!r} is not supported here: it does not drive block devices")
    raise ConfigurationError(f"{text!r} is not one of {', '.join([*OWN, *sorted(MAPPED)])}")


def note(text: str, iodepth: int) -> str:
    """One line about the mapping of a name; empty for this program's own."""
    if text in OWN or not text:
        return ""
    capped = text in ONE_AT_A_TIME and iodepth > 1
    depth = "; it has one I/O at a time, so iodepth is capped at 1" if capped else ""
    return f"ioengine={text}: each I/O is awaited (ioengine=await), nothing goes through the kernel{depth}"


def help_text(name: str) -> str:
    """--enghelp, of all engines or of one."""
    if not name:
        lines = ["Available engines:", *(f"\t{own}" for own in OWN), "Taken as await:"]
        return "\n".join([*lines, *(f"\t{mapped}" for mapped in sorted(MAPPED))])
    if name == "many":
        return "many: one await for a batch of iodepth_batch_submit I/Os, iodepth of them in flight"
    engine(name)
    return f"{name}: one await for each I/O, iodepth coroutines" + ("" if name == "await" else " (taken as await)")
