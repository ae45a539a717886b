"""For tests: a controller that outlives its drivers, a keeper, and drivers in separate
processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvme_async.emulator import EmulatedController
from nvme_async.keepalive import config
from nvme_async.keepalive.keeper.client import Deposit, KeeperClient
from nvme_async.keepalive.keeper.process import listen
from nvme_async.keepalive.keeper.server import Keeper

PREAMBLE = """
import asyncio, os, signal, sys
import nvme_async
from nvme_async.errors import *

def report(*what):
    print(*what, flush=True)

async def next_line():
    return (await asyncio.to_thread(sys.stdin.readline)).strip()
"""


class Driver:
    """Another process. Its program is the body of a coroutine that can use `report(…)`,
    `await next_line()`, `uri` and `keeper`.
    """

    def __init__(self, site: Site, body: str, **environ: str) -> None:
        program = PREAMBLE + f"uri, keeper = {site.uri!r}, {site.keeper_path!r}\nasync def main():\n"
        program += textwrap.indent(textwrap.dedent(body), "    ") + "\nasyncio.run(main())\n"
        self.popen = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
        )
        self.pid = self.popen.pid

    def receive(self) -> str:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline().strip()
        if not line:
            _, errors = self.popen.communicate(timeout=60)
            raise AssertionError(f"the driver ended with {self.popen.returncode}: {errors}")
        return line

    def send(self, line: str = "") -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
        self.popen.communicate(timeout=60)

    def end(self) -> None:
        """It ends by itself, without an error."""
        _, errors = self.popen.communicate(timeout=60)
        assert (self.popen.returncode, errors) == (0, ""), errors


class Site:
    """An emulated controller behind a socket and a keeper, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = str(folder / "device")
        self.uri = f"vfio-user:{self.path}"
        self.keeper_path = str(folder / "keeper")
        self.drivers: list[Driver] = []
        self.controller = EmulatedController("size=16MiB")
        self.controller.listen(self.path)
        self.start_keeper()

    def start_keeper(self) -> None:
        self.keeper = Keeper(listen(self.keeper_path))
        self._thread = threading.Thread(target=self.keeper.run)
        self._thread.start()

    def stop_keeper(self) -> None:
        self.keeper.stop()
        self._thread.join(10)
        os.unlink(self.keeper_path)

    def driver(self, body: str, **environ: str) -> Driver:
        driver = Driver(self, body, **environ)
        self.drivers.append(driver)
        return driver

    def counters(self) -> dict[str, Any]:
        return self.controller.faults.counters()

    def lives(self) -> dict[str, int]:
        """How often the controller was enabled and disabled, and got Identify Controller."""
        counters = self.counters()
        return {
            name: counters[name] for name in ("enables", "disables", "resets", "shutdowns", "invalid_doorbells")
        } | {
            "identify": counters["admin"].get(6, 0),
            "create_cq": counters["admin"].get(5, 0),
        }

    def deposits(self) -> list[Deposit]:
        with KeeperClient(self.keeper_path) as client:
            return client.deposits()

    def close(self) -> None:
        for driver in self.drivers:
            driver.kill()
        self.stop_keeper()
        self.controller.close()


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment does not influence whether keepalive is on."""
    monkeypatch.setattr(config, "command_line", config.CommandLine())
    for name in config.VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()
