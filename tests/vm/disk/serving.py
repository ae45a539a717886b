"""Processes and disks of the block device tests."""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

PATIENCE = 120.0
"""Seconds, for anything: the guest is slow."""


def run(*command: str) -> str:
    """Its output; an error has it too."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def address_of(role: str) -> str:
    for entry in Path("/sys/class/nvme").iterdir():
        if (entry / "serial").read_text().strip() == role:
            return (entry / "address").read_text().strip()
    raise AssertionError(f"there is no controller with the serial number {role}")


def wait_for(path: Path) -> Path:
    """Until it exists."""
    limit = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < limit, f"there is no {path}"
        time.sleep(0.05)
    return path


def ask(control: Path, operation: str, **arguments: object) -> bool:
    """One operation of an emulated controller's control socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(control))
        client.sendall(json.dumps({"op": operation, "args": arguments}).encode() + b"\n")
        return bool(json.loads(client.makefile().readline())["ok"])


def disks() -> list[str]:
    return [entry.name for entry in Path("/sys/block").glob("ublkb*")]


def sysfs(disk: Path, name: str) -> str:
    return Path(f"/sys/block/{disk.name}/{name}").read_text().strip()


def quiet(words: tuple[str, ...]) -> list[str]:
    """The lines of the kernel's log with any of these words."""
    lines = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if any(word in line for word in words)]


class Process:
    """python -m nvme_async, or another program of Python's."""

    def __init__(self, *words: str, program: tuple[str, ...] = ("-m", "nvme_async")) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *program, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._said = b""
        self._read = 0

    def write(self, line: str) -> None:
        assert self.popen.stdin is not None
        os.write(self.popen.stdin.fileno(), line.encode() + b"\n")

    def line_with(self, word: str) -> str:
        """Waits for the next such line of its output."""
        assert self.popen.stdout is not None
        limit = time.monotonic() + PATIENCE
        while True:
            while (end := self._said.find(b"\n", self._read)) >= 0:
                line = self._said[self._read : end].decode(errors="replace")
                self._read = end + 1
                if word in line:
                    return line
            ready, _, _ = select.select([self.popen.stdout], [], [], max(0.0, limit - time.monotonic()))
            data = os.read(self.popen.stdout.fileno(), 65536) if ready else b""
            assert data, f"{word!r} never came ({'ended' if ready else 'silent'}): {self.log()}"
            self._said += data

    def log(self) -> str:
        return self._said.decode(errors="replace")

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.end()

    def end(self) -> int:
        """Its exit status, once it has ended by itself."""
        status = self.popen.wait(PATIENCE)
        if self.popen.stdin is not None:
            self.popen.stdin.close()
        if self.popen.stdout is not None and not self.popen.stdout.closed:
            self._said += self.popen.stdout.read()
            self.popen.stdout.close()
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self.end()


class Keeper(Process):
    def __init__(self, path: Path) -> None:
        super().__init__("keeper", "--socket", str(path))
        self.path = path

    def __enter__(self) -> str:  # type: ignore[override]
        limit = time.monotonic() + PATIENCE
        while not self.path.exists():
            assert self.popen.poll() is None, self.log()
            assert time.monotonic() < limit, "no keeper"
            time.sleep(0.05)
        return str(self.path)


class Server(Process):
    """nvme-async export."""

    def __init__(self, uri: str, *options: str, keeper: str | None = None) -> None:
        super().__init__(*(("--keeper", keeper) if keeper else ()), "export", uri, *options)

    def disk(self) -> Path:
        """Waits until it serves."""
        return Path(self.line_with(" is /dev/ublkb").rpartition(" is ")[2])


class Prober:
    """Reads one block of the disk, past every cache, all the time: how long it stalls is what an
    application feels.
    """

    def __init__(self, disk: Path) -> None:
        self._fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
        self._buffer = mmap.mmap(-1, 4096)
        self._stop = threading.Event()
        self._longest = self._last = 0.0
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._probe, name="prober")

    def _probe(self) -> None:
        while not self._stop.wait(0.01):
            begin = time.monotonic()
            try:
                os.preadv(self._fd, [self._buffer], 0)
            except OSError as error:
                self._failure = error
                return
            self._last = begin
            self._longest = max(self._longest, time.monotonic() - begin)

    def longest(self) -> float:
        """Seconds, since the last call."""
        assert self._failure is None, self._failure
        longest, self._longest = self._longest, 0.0
        return longest

    def wait_since(self, instant: float) -> None:
        """Until a read that began after it has ended."""
        limit = time.monotonic() + PATIENCE
        while self._last < instant:
            assert self._failure is None, self._failure
            assert time.monotonic() < limit, "the disk doesn't answer"
            time.sleep(0.01)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        os.close(self._fd)
