"""Waiting for nodes and functions that don't exist yet, shortly after a driver was bound."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import TypeVar

log: logging.Logger = logging.getLogger("nvme_async")
T = TypeVar("T")

SECONDS = 1.0
"""The total time; udev and the kernel need about 10 ms."""
TRANSIENT = frozenset({errno.ENOENT, errno.ENODEV, errno.EBUSY, errno.EAGAIN})
"""No node yet; a node without a device yet; opened by udev, which examines it."""


def patiently(what: str, call: Callable[[], T]) -> T:
    """Returns call()'s result. If it raises one of TRANSIENT it is called again, with growing
    pauses, for SECONDS; then its last error is raised. Blocks.
    """
    limit, pause, tries = time.monotonic() + SECONDS, 0.01, 1
    while True:
        try:
            result = call()
        except OSError as error:
            if error.errno not in TRANSIENT or time.monotonic() + pause > limit:
                raise
            log.info("%s: %s; the next attempt is in %.0f ms", what, os.strerror(error.errno), 1000 * pause)
            time.sleep(pause)
            pause, tries = min(2 * pause, 0.2), tries + 1
            continue
        if tries > 1:
            log.warning("%s: attempt %d succeeded", what, tries)
        return result
