"""Single keys from a terminal, without waiting for a line."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

KeyReader = Callable[[float], str]


@contextlib.contextmanager
def keys() -> Iterator[KeyReader]:
    """A function that waits for at most so many seconds and returns the pressed key, or "".

    If stdin is no terminal it only waits. The terminal's settings are restored afterwards.
    """
    try:
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
    except (OSError, ValueError, termios.error):
        yield _sleep
        return
    tty.setcbreak(fd)

    def read(seconds: float) -> str:
        ready, _, _ = select.select([fd], [], [], seconds)
        return os.read(fd, 1).decode("latin-1") if ready else ""

    try:
        yield read
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""
