"""The controllers of the guest. Each has its role as its serial number, by which the tests
inside find it.

All are QEMU's own `-device nvme`, which is independent of this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
# Sizes differ where several namespaces could be confused.
DEFAULT_SIZE = 256 * MIB


@dataclass(frozen=True)
class Namespace:
    """One `-device nvme-ns`; options as QEMU names them."""

    nsid: int
    size: int = DEFAULT_SIZE
    options: str = ""


@dataclass(frozen=True)
class Drive:
    """One controller; options as QEMU names them."""

    role: str
    options: str = ""
    namespaces: tuple[Namespace, ...] = (Namespace(1),)
    subsystem: bool = False  # a namespace that is not attached needs one
    subsystem_options: str = ""
    bus: str = ""  # a PCIe root port to plug it into: a drive that can be unplugged


BLOCK_4K = "logical_block_size=4096,physical_block_size=4096"

DRIVES = (
    Drive("plain"),
    Drive("second", namespaces=(Namespace(1, options=BLOCK_4K),)),
    Drive("mdts-1", "mdts=1"),
    Drive("mdts-none", "mdts=0"),
    Drive(
        "many",
        namespaces=(
            Namespace(1, 64 * MIB),
            Namespace(2, 96 * MIB, BLOCK_4K),
            Namespace(5, 128 * MIB),
            Namespace(9, 32 * MIB, "detached=on"),
        ),
        subsystem=True,
    ),
    Drive("one-queue", "max_ioqpairs=1"),
    Drive("one-vector", "msix_qsize=1"),
    Drive("cmb", "cmb_size_mb=16"),
    Drive("metadata", namespaces=(Namespace(1, options="ms=8"), Namespace(2, options="ms=8,mset=1"))),
    Drive("zoned", namespaces=(Namespace(1, 64 * MIB, "zoned=on,zoned.zone_size=4M,zoned.zone_capacity=3M"),)),
    # Two functions of one slot: QEMU gives them no ACS, so the kernel puts them into one IOMMU
    # group.
    Drive("twin-a", "multifunction=on,addr=1c.0"),
    Drive("twin-b", "addr=1c.1"),
    Drive(
        "virtualized",
        "sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=2,max_ioqpairs=6,msix_qsize=4",
        subsystem=True,
    ),
    Drive("pullable", bus="port1"),
    Drive("bench", namespaces=(Namespace(1, 1024 * MIB),)),
)


def arguments(drives: tuple[Drive, ...], folder: Path) -> list[str]:
    """QEMU's arguments for these drives; their media are sparse files in `folder`."""
    result: list[str] = []
    ports = [drive.bus for drive in drives if drive.bus]
    for number, port in enumerate(ports, start=1):
        result += ["-device", f"pcie-root-port,id={port},chassis={number},slot={number}"]
    for drive in drives:
        name = f"drive-{drive.role}"
        place = f",bus={drive.bus}" if drive.bus else ""
        options = f",{drive.options}" if drive.options else ""
        if drive.subsystem:
            more = f",{drive.subsystem_options}" if drive.subsystem_options else ""
            result += ["-device", f"nvme-subsys,id={name}-subsystem,nqn={drive.role}{more}"]
            options += f",subsys={name}-subsystem"
        result += ["-device", f"nvme,id={name},serial={drive.role}{place}{options}"]
        for namespace in drive.namespaces:
            medium = folder / f"{drive.role}-{namespace.nsid}.raw"
            with medium.open("wb") as file:
                file.truncate(namespace.size)
            blockdev = f"{name}-{namespace.nsid}"
            extra = f",{namespace.options}" if namespace.options else ""
            # cache=unsafe: the media exist only as long as the guest, so its flushes need not reach
            # our disk.
            result += ["-drive", f"id={blockdev},file={medium},format=raw,if=none,cache=unsafe,discard=unmap"]
            result += ["-device", f"nvme-ns,drive={blockdev},bus={name},nsid={namespace.nsid}{extra}"]
    return result
