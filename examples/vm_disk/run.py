"""A virtual machine whose disk is an export: it works on while the driver below is upgraded and
killed.

    python examples/vm_disk/run.py --kernel /boot/vmlinuz-6.1.0-37-cloud-amd64

The guest (init.sh) writes, reads back and compares; its root file system is on an NVMe drive of
QEMU's, behind which is `nvme-async export --nbd`. The drive below the export is an emulated
controller in a process of its own, or --device. Every second end of the server is an upgrade
(SIGTERM, then the next version), every other one `kill -9`. The next server waits, its modules
imported; the keeper has the running controller for it. QEMU connects again and sends again what
had no answer.

Needs QEMU, a kernel with NVMe and ext4 built in (Debian's cloud flavour), a static busybox, mke2fs.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZE = 64 << 20
RECONNECT = 60
"""Seconds for which QEMU holds requests while no server is there."""
LIMIT = 120.0
"""Seconds, for anything."""


class Program:
    """A process, and the lines of its output as they come."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name, self.process = name, process
        self.lines: list[str] = []
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, name: str, *words: str) -> Program:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *words, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
        return cls(name, process)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._news:
                self.lines.append(line.decode(errors="replace").rstrip())
                self._news.notify_all()
        async with self._news:
            self.lines.append("(ended)")
            self._news.notify_all()

    async def line_with(self, pattern: str, since: int = 0) -> str:
        """The first such line of its output after the first `since` ones."""
        async with asyncio.timeout(LIMIT), self._news:
            while True:
                for line in self.lines[since:]:
                    if re.search(pattern, line):
                        return line
                if self.lines[-1:] == ["(ended)"]:
                    text = "\n".join(self.lines[-30:])
                    raise SystemExit(f"{self.name} ended without a line with {pattern!r}:\n{text}")
                await self._news.wait()

    async def end(self, number: signal.Signals | None = None) -> int:
        """Its exit status, once it has ended."""
        if number is not None and self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(LIMIT):
            await self._reading
            return await self.process.wait()


def make_root(folder: Path, busybox: str) -> Path:
    """The guest's root file system: busybox and init.sh."""
    if b"/ld-linux" in Path(busybox).read_bytes()[:4096]:  # the name of its interpreter
        raise SystemExit(f"{busybox} is not static: apt install busybox-static")
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    for name in ("proc", "dev", "run"):
        (root / name).mkdir()
    shutil.copy(busybox, root / "bin/busybox")
    shutil.copy(HERE / "init.sh", root / "init")
    (root / "init").chmod(0o755)
    return root


async def run(options: argparse.Namespace, folder: Path) -> None:
    medium, socket, keeper = folder / "drive.raw", folder / "drive.sock", folder / "keeper.sock"
    ours = (sys.executable, "-m", "nvme_async")
    programs: list[Program] = []

    async def start(name: str, *words: str) -> Program:
        programs.append(await Program.start(name, *words))
        return programs[-1]

    async def server() -> Program:
        words = ("--keeper", str(keeper), "export", device, "--nbd", str(folder / "disk.nbd"), "--wait", str(LIMIT))
        return await start("the export", *ours, *words)

    try:
        device = options.device or f"vfio-user:{socket}"
        make = ("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(make_root(folder, options.busybox)))
        maker = await start("mke2fs", *make, str(medium), f"{SIZE >> 10}k")
        if await maker.end():
            raise SystemExit("\n".join(maker.lines))
        if options.device is None:
            words = ("emulate", "--path", str(medium), "--size", str(SIZE), "--block", "512", "--socket", str(socket))
            await start("the drive", *ours, *words)
        await start("the keeper", *ours, "keeper", "--socket", str(keeper))
        async with asyncio.timeout(LIMIT):
            while not (keeper.exists() and (options.device or socket.exists())):
                await asyncio.sleep(0.05)
        serving = await server()
        await serving.line_with("namespace 1")
        if options.device is not None:
            copy = ("qemu-img", "convert", "-n", "-O", "raw", str(medium), f"nbd+unix:///?socket={folder}/disk.nbd")
            copier = await start("qemu-img", *copy)
            if await copier.end():
                raise SystemExit("\n".join(copier.lines))
        disk = f"driver=nbd,node-name=disk,reconnect-delay={RECONNECT},server.type=unix,server.path={folder}/disk.nbd"
        guest = await start(
            "the guest",
            *shlex.split(options.qemu),
            *("-accel", options.accelerator, "-cpu", "host" if options.accelerator == "kvm" else "max,la57=off"),
            *("-M", "q35", "-m", "256M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", "stdio", "-kernel", options.kernel),
            *("-append", "console=ttyS0 root=/dev/nvme0n1 rw init=/init panic=-1 quiet no_timer_check"),
            *("-blockdev", disk, "-device", "nvme,serial=disk,drive=disk"),
        )
        print(await guest.line_with("guest: verified"), flush=True)
        for number in range(options.rounds):
            successor = await server()
            await successor.line_with("ready to take over")
            upgrade = number % 2 == 0
            before, begin = len(guest.lines), time.monotonic()
            await serving.end(signal.SIGTERM if upgrade else signal.SIGKILL)
            await successor.line_with("namespace 1")
            served = time.monotonic() - begin
            serving = successor
            # What is verified after this line was read and written through the new server.
            line = await guest.line_with("guest: verified", max(before, len(guest.lines)))
            print(f"{'upgraded' if upgrade else 'killed'}: served again after {served:.2f} s; {line}", flush=True)
        assert guest.process.stdin is not None
        guest.process.stdin.write(b"stop\n")
        line = await guest.line_with("guest: ended")
        print(line, flush=True)
        status = await guest.end()
        if status or not line.endswith("good"):
            raise SystemExit("\n".join([*guest.lines[-30:], f"QEMU ended with {status}"]))
    finally:
        for program in reversed(programs):
            await program.end(signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernel", required=True, help="of the guest: NVMe and ext4 built in")
    parser.add_argument("--device", help="export this drive, which is overwritten, instead of an emulated one")
    parser.add_argument("--rounds", type=int, default=4, help="upgrades and kills, in turn (default: %(default)s)")
    parser.add_argument(
        "--qemu", default="qemu-system-x86_64", help="its command line begins so (default: %(default)s)"
    )
    parser.add_argument("--accelerator", choices=("tcg", "kvm"), default="tcg", help="(default: %(default)s)")
    parser.add_argument("--busybox", default=shutil.which("busybox"), help="a static one (default: %(default)s)")
    options = parser.parse_args()
    if options.busybox is None:
        parser.error("there is no busybox: apt install busybox-static")
    with tempfile.TemporaryDirectory(prefix="vm-disk-") as folder:
        asyncio.run(run(options, Path(folder)))


if __name__ == "__main__":
    main()
