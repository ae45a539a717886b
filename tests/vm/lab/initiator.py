"""A Linux guest whose own NVMe driver works on our emulated controllers, through QEMU's
`vfio-user-pci`.

QEMU passes the guest's memory to each controller and maps its doorbell page into the guest, so that
no code of ours is between the kernel's driver and the controller.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .emulated import Emulator
from .image import Image
from .machine import TIMER, Boot
from .newqemu import DEVICE, NewQemu

MEMORY = "1G"
# A polled queue in addition to those with interrupts. No panic=, so that a guest that can't
# continue shows why instead of rebooting forever.
KERNEL_LINE = f"root=/dev/nvme0n1 rootwait rw console=ttyS0 init=/init.sh quiet loglevel=5 nvme.poll_queues=1 {TIMER}"


def command_line(
    qemu: NewQemu, image: Image, payload: Path, boot: Boot, emulators: Mapping[str, Emulator], accelerator: str
) -> list[str]:
    """QEMU's arguments: the root disk is its own NVMe controller and comes first, then ours."""
    folder = boot.folder
    processor = ["-cpu", "host"] if accelerator == "kvm" else ["-cpu", "max,la57=off"]
    devices = []
    for number, emulator in enumerate(emulators.values()):
        device = {
            "driver": DEVICE,
            "id": f"emulated-{emulator.name}",
            "socket": {"type": "unix", "path": str(emulator.socket)},
            "addr": f"{8 + number:x}",
        }
        devices += ["-device", json.dumps(device)]
    return [
        *qemu.command,
        *("-accel", accelerator, *processor, "-M", "q35,memory-backend=memory", "-m", MEMORY, "-smp", "2"),
        # Shared memory with a descriptor: only such memory can be passed to another process.
        *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-nographic"),
        *("-kernel", str(image.kernel), "-append", KERNEL_LINE),
        *("-chardev", f"file,id=console,path={boot.console}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=host,path={folder / 'host.sock'},server=on,wait=off", "-serial", "chardev:host"),
        *("-qmp", f"unix:{folder / 'qmp.sock'},server=on,wait=off", "-monitor", "none"),
        *("-drive", f"id=root,file={image.disk},format=raw,if=none,snapshot=on,cache=unsafe"),
        *("-device", "nvme,serial=root,drive=root,addr=2"),
        *("-drive", f"id=payload,file={payload},format=raw,if=none,readonly=on"),
        *("-device", "virtio-blk-pci,drive=payload,serial=payload"),
        *("-drive", f"id=results,file={boot.results},format=raw,if=none,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=results,serial=results"),
        *devices,
    ]
