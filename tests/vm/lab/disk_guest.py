"""The second guest: Debian 13's kernel, which has ublk, and one drive behind the IOMMU. It runs
under the QEMU of newqemu.py: Debian 12's crashes guests of this kernel now and then.
"""

from __future__ import annotations

from pathlib import Path

from . import drives
from .image import Image
from .machine import TIMER, TRACED, Boot
from .newkernel import NewKernel
from .newqemu import NewQemu

MEMORY = "2G"
KERNEL_LINE = (
    "root=/dev/nvme0n1 rootwait rw console=ttyS0 init=/init.sh intel_iommu=on iommu=pt panic=-1 quiet loglevel=4 "
    + TIMER
)
DRIVES = (
    drives.Drive("exported", namespaces=(drives.Namespace(1, 256 * drives.MIB),)),
    # What the command line is compared on, and only a newer QEMU has, or has differently.
    drives.Drive(
        "placement",
        namespaces=(
            drives.Namespace(1, 64 * drives.MIB, "fdp.ruhs=0;1"),
            drives.Namespace(3, 32 * drives.MIB, "detached=on"),
        ),
        subsystem=True,
        subsystem_options="fdp=on,fdp.runs=8M,fdp.nrg=2,fdp.nruh=4",
    ),
    drives.Drive(
        "virtualized",
        "sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=2,max_ioqpairs=6,msix_qsize=4",
        subsystem=True,
    ),
    drives.Drive(
        "protected",
        "cmb_size_mb=16",
        namespaces=(drives.Namespace(1, 64 * drives.MIB, "ms=8,pi=1"),),
    ),
    drives.Drive(
        "zoned",
        namespaces=(drives.Namespace(1, 64 * drives.MIB, "zoned=on,zoned.zone_size=4M,zoned.zone_capacity=3M"),),
    ),
)


def command_line(
    qemu: NewQemu, kernel: NewKernel, image: Image, folder: Path, payload: Path, boot: Boot, accelerator: str
) -> list[str]:
    """QEMU's arguments. The root disk comes first, as /dev/nvme0n1."""
    processor = ["-cpu", "host"] if accelerator == "kvm" else ["-cpu", "max,la57=off"]
    traced = folder / "trace-events"
    traced.write_text("\n".join(TRACED) + "\n")
    return [
        *qemu.command,
        *("-accel", accelerator, *processor, "-M", "q35,kernel-irqchip=split", "-m", MEMORY, "-smp", "2"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nographic"),
        *("-device", "intel-iommu,intremap=on,caching-mode=on"),
        *("-kernel", str(kernel.kernel), "-append", KERNEL_LINE),
        *("-chardev", f"file,id=console,path={boot.console}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=host,path={folder / 'host.sock'},server=on,wait=off", "-serial", "chardev:host"),
        *("-qmp", f"unix:{folder / 'qmp.sock'},server=on,wait=off", "-monitor", "none"),
        *("-trace", f"events={traced}", "-D", str(boot.trace)),
        *("-drive", f"id=root,file={image.disk},format=raw,if=none,snapshot=on,cache=unsafe"),
        *("-device", "nvme,serial=root,drive=root"),
        *("-drive", f"id=modules,file={kernel.modules},format=raw,if=none,readonly=on"),
        *("-device", "nvme,id=modules,serial=modules"),
        *("-device", "nvme-ns,drive=modules,bus=modules,nsid=1"),
        *("-drive", f"id=payload,file={payload},format=raw,if=none,readonly=on"),
        *("-device", "virtio-blk-pci,drive=payload,serial=payload"),
        *("-drive", f"id=results,file={boot.results},format=raw,if=none,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=results,serial=results"),
        *drives.arguments(DRIVES, folder),
    ]
