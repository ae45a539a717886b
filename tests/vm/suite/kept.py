"""A driver process of the keepalive tests: the torture tests' writers, on a controller that is
handed over in every possible way.

    python kept.py URI JOURNAL new                      opens the controller, zeroes its blocks
    python kept.py URI JOURNAL open [--keeper SOCKET]   restores after an exec, or from the keeper
    python kept.py URI JOURNAL take --socket PATH       takes over from an offering predecessor

It reports events as lines of JSON on standard output, and reads commands from standard input:
"write", then "handover PATH", "exec" or "close".
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "torture"))

from journal import BLOCKS, THREADS, Journal, Unit
from victim import Plan, Victim

import nvme_async
from nvme_async.errors import HandedOver

POOL_PAGES = 8192


class Kept(Victim):
    """The torture tests' driver, controlled by a test."""

    def __init__(self, arguments: argparse.Namespace, journal: Journal) -> None:
        super().__init__(Plan(arguments.uri, arguments.keeper, pool_pages=POOL_PAGES), journal, sys.stdout.fileno(), -1)
        self._arguments = arguments

    def _opening(self) -> Any:
        if self._arguments.how == "take":
            return nvme_async.take_over(self._arguments.socket)
        return nvme_async.open(
            self._arguments.uri,
            keepalive=True,
            pool_pages=POOL_PAGES,
            keeper=self._arguments.keeper,
            keeper_wait=0 if self._arguments.keeper == "none" else 60,
            command_timeout=20,
        )

    async def run(self) -> None:
        self.tell("standby", pid=os.getpid())
        async with self._opening() as controller:
            if self._arguments.how == "new":
                await controller.namespaces[1].write_zeroes(0, BLOCKS)
            await self._take_stock(controller)
            threads = [
                threading.Thread(target=self._thread, name=f"writer {number}", args=(controller, number))
                for number in range(THREADS)
            ]
            for thread in threads:
                thread.start()
            await asyncio.to_thread(self._verified.wait)
            self.tell(
                "verified", first_io=self._first_io, queues=len(controller.queues.io_queues()), **self._pool(controller)
            )
            # Not before the predecessor's threads have recorded their last acknowledgements.
            assert await self._hear() == "write"
            await asyncio.to_thread(self._verified.wait)
            self.tell("running")
            what, _, where = (await self._hear()).partition(" ")
            if what == "handover":
                async with controller.handover(where) as offer:
                    self.tell("offering")
                    await offer
            elif what == "exec":
                arguments = [self._arguments.uri, self._arguments.journal, "open", "--keeper", self._arguments.keeper]
                await controller.exec([sys.executable, os.path.abspath(__file__), *arguments])
            self._stop.set()
            while any(thread.is_alive() for thread in threads):
                await asyncio.sleep(0.01)
            self.tell("left", last_ack=max(self.journal.last_ack))
        self.tell("closed")

    async def _hear(self) -> str:
        return (await asyncio.to_thread(sys.stdin.readline)).strip()

    async def _write(self, controller: nvme_async.Controller, units: list[Unit]) -> None:
        try:
            await super()._write(controller, units)
        except HandedOver:
            pass  # the successor finds the result of the last command


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("journal")
    parser.add_argument("how", choices=("new", "open", "take"))
    parser.add_argument("--keeper", default="none")
    parser.add_argument("--socket")
    arguments = parser.parse_args()
    random.seed()
    fd = os.open(arguments.journal, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    kept = Kept(arguments, Journal(fd))
    try:
        uvloop.run(kept.run())
    except BaseException:
        kept.fail()


if __name__ == "__main__":
    main()
