"""What a test does in a forked child."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable


def in_child(act: Callable[[], object]) -> int:
    """Returns the forked child's pid. The child runs act() and exits with 0, or with 1 and a
    traceback.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        act()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
