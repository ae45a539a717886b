"""Starts servers by forking a process that has their modules imported already: hundreds of them are
killed, and an emulated processor imports for seconds.

Reads lines of JSON: [program, words, file for its standard input, file for its output]. Prints the
process id of each.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import serve
import uvloop

import nvme_async.cli.export  # noqa: F401 - what is imported here is not imported again
from nvme_async.cli.main import main as command


def become(program: str, words: list[str], given: str, output: str) -> None:
    """In the child."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for fd, path, flags in ((0, given, os.O_RDWR), (1, output, os.O_WRONLY)):
        opened = os.open(path, flags)
        os.dup2(opened, fd)
        os.close(opened)
    os.dup2(1, 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - without what the parent has buffered
    if program == "serve":
        uvloop.run(serve.main(*words))
    else:
        sys.argv = ["nvme-async", *words]
        command()
    sys.exit()


signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child is waited for
print("ready", flush=True)
while line := sys.stdin.readline():
    child = os.fork()
    if child == 0:
        become(*json.loads(line))
    print(child, flush=True)
