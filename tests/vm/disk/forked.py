"""Servers that forker.py starts."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from serving import PATIENCE, Process


class Forked:
    """One of them. Its output is a file."""

    def __init__(self, process: int, given: Path, output: Path) -> None:
        self.process = process
        self._given, self._output = given, output
        self._read = 0

    def log(self) -> str:
        return self._output.read_text(errors="replace")

    def line_with(self, word: str) -> str:
        """Waits for the next such line."""
        limit = time.monotonic() + PATIENCE
        while True:
            running = self.running()
            text = self.log()
            while (end := text.find("\n", self._read)) >= 0:
                line = text[self._read : end]
                self._read = end + 1
                if word in line:
                    return line
            assert running, f"{word!r} never came, process {self.process} has ended: {text}"
            assert time.monotonic() < limit, f"{word!r} never came: {text}"
            time.sleep(0.005)

    def disk(self) -> Path:
        """Waits until it serves."""
        return Path(self.line_with("/dev/ublkb").rpartition(" ")[2])

    def write(self, line: str) -> None:
        with self._given.open("w") as given:
            given.write(line + "\n")

    def running(self) -> bool:
        return os.path.exists(f"/proc/{self.process}")

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process, number)

    def end(self) -> None:
        limit = time.monotonic() + PATIENCE
        while self.running():
            assert time.monotonic() < limit, f"process {self.process} doesn't end: {self.log()}"
            time.sleep(0.005)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.end()


class Forker(Process):
    def __init__(self, folder: Path) -> None:
        super().__init__(program=(str(Path(__file__).with_name("forker.py")),))
        self._folder = folder
        self._started: list[Forked] = []
        self.line_with("ready")

    def start(self, program: str, *words: str) -> Forked:
        """program: "export", with its words, or "serve"."""
        name = f"forked-{len(self._started)}"
        given, output = self._folder / f"{name}.in", self._folder / f"{name}.out"
        os.mkfifo(given)
        output.touch()
        self.write(json.dumps([program, words, str(given), str(output)]))
        self._started.append(Forked(int(self.line_with("")), given, output))
        return self._started[-1]

    def __exit__(self, *_: object) -> None:
        for server in self._started:
            if server.running():
                server.kill()
        super().__exit__()
