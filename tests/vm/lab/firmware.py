"""UEFI firmware (EDK2) as the host of an emulated controller: a third driver beside Linux' and
QEMU's, which polls.

Its shell copies a file on the controller and compares the two; then it loads a kernel from there,
whose own driver takes the controller over from the firmware's.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

from . import emulated
from .image import run as call
from .machine import TIMER
from .newqemu import DEVICE, NewQemu

TOOLS = {"mtools": "mcopy"}
ROLE = emulated.Role("firmware", "--path {folder}/firmware.raw --block 512 --mdts 8KiB")
SIZE = 96 << 20
DATA = 8 << 20
SCRIPT = (
    "map -r",
    "fs0:",
    "cp data.bin copy.bin",
    "comp data.bin copy.bin",
    f"vmlinuz.efi console=ttyS0 panic=-1 root=/dev/none {TIMER}",
)
TIMEOUT = 180.0
EXPECTED = {
    "no differences encountered": "the shell found its copy like the original",
    "nvme0n1": "the kernel that it loaded sees the namespace",
}


def _medium(image: Path, kernel: Path, folder: Path) -> bytes:
    """A FAT file system on the whole namespace; the content of data.bin."""
    script, data = folder / "startup.nsh", folder / "data.bin"
    script.write_text("".join(f"{line}\r\n" for line in SCRIPT))
    data.write_bytes(random.Random(1).randbytes(DATA))
    with image.open("wb") as file:
        file.truncate(SIZE)
    call(["mformat", "-i", image, "-T", str(SIZE // 512), "-h", "64", "-s", "32", "::"])
    for source, name in ((script, "startup.nsh"), (data, "data.bin"), (kernel, "vmlinuz.efi")):
        call(["mcopy", "-i", image, source, f"::/{name}"])
    return data.read_bytes()


def _command_line(qemu: NewQemu, emulator: emulated.Emulator, variables: Path, console: Path) -> list[str]:
    firmware = f"if=pflash,format=raw,unit=0,readonly=on,file={qemu.root}/usr/share/OVMF/OVMF_CODE_4M.fd"
    device = {"driver": DEVICE, "socket": {"type": "unix", "path": str(emulator.socket)}}
    return [
        *qemu.command,
        *("-accel", "tcg", "-cpu", "max,la57=off", "-M", "q35,memory-backend=memory", "-m", "512M"),
        *("-object", "memory-backend-memfd,id=memory,size=512M,share=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{console}"),
        *("-drive", firmware, "-drive", f"if=pflash,format=raw,unit=1,file={variables}"),
        *("-device", json.dumps(device)),
    ]


def run(qemu: NewQemu, kernel: Path, folder: Path, kept: Path) -> list[str]:
    """Return what went wrong; LabError if the firmware or its kernel didn't finish. The console
    is left in `kept`.
    """
    medium, variables, console = folder / "firmware.raw", folder / "variables.fd", kept / "firmware.log"
    data = _medium(medium, kernel, folder)
    shutil.copy(qemu.root / "usr/share/OVMF/OVMF_VARS_4M.fd", variables)
    begin = time.monotonic()
    with emulated.running(folder, (ROLE,)) as emulators:
        emulator = emulators[ROLE.name]
        call(_command_line(qemu, emulator, variables, console), timeout=TIMEOUT, env=qemu.environment)
        seen = emulator.call("counters", {})
    text = console.read_text(errors="replace")
    problems = [f"firmware: not so: {meaning}" for sign, meaning in EXPECTED.items() if sign not in text]
    problems += [
        f"firmware: {name} is {seen[name]}" for name in ("fatals", "invalid_doorbells", "errors") if seen[name]
    ]
    copy = folder / "copy.bin"
    call(["mcopy", "-i", medium, "::/copy.bin", copy])
    if copy.read_bytes() != data:
        problems.append("firmware: the file that it wrote is not what the medium holds")
    print(
        f"interop: UEFI firmware: {seen['commands_read']} reads, {seen['commands_written']} writes, "
        f"{time.monotonic() - begin:.0f} s"
    )
    return problems
