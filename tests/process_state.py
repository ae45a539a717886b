"""State of the process that outlives a test and may change the next one: each test restores it.

A test that depends on the order of tests fails far from the one that caused it. So conftest.py
compares this state before and after each test.
"""

import asyncio
import logging
import os
import resource
import signal
import sys
import threading
from typing import Any

from nvme_async.device.schemes import _modules as _device_schemes
from nvme_async.driver import schemes
from nvme_async.keepalive import config, execute

PYTEST = ("PYTEST_CURRENT_TEST", "PYTEST_VERSION")
"""Variables that pytest itself changes."""
_LIMITS = {
    name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
}
_SIGNALS = [
    getattr(signal, f"SIG{name}")
    for name in ("HUP", "INT", "QUIT", "USR1", "USR2", "PIPE", "TERM", "CHLD", "BUS", "SEGV", "PROF", "XFSZ")
]
_LOGGERS = (None, "nvme_async", "asyncio")


def current() -> dict[Any, Any]:
    """By name. Values are copies that compare equal if nothing has changed."""
    state: dict[Any, Any] = {
        "environment": {name: value for name, value in os.environ.items() if name not in PYTEST},
        "working directory": os.getcwd(),
        "umask": _umask(),
        "CPUs": os.sched_getaffinity(0),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "switch interval": sys.getswitchinterval(),
        "event loop policy": asyncio.get_event_loop_policy(),
        "thread's trace function": sys.gettrace(),
        "hook for exceptions of threads": threading.excepthook,
        "schemes of devices": dict(_device_schemes),
        "schemes of controllers": dict(schemes._modules),
        "options of a command line": repr(config.command_line),
        "bundles for an exec": sorted(execute._waiting),
    }
    state |= {number.name: signal.getsignal(number) for number in _SIGNALS}
    state |= {name: resource.getrlimit(number) for name, number in _LIMITS.items()}
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        # pytest's own come and go with the phases of a test.
        handlers = [handler for handler in logger.handlers if not type(handler).__module__.startswith("_pytest.")]
        state[f"logger {logger.name}"] = (logger.level, logger.disabled, logger.propagate, handlers)
    return state


def changes(before: dict[Any, Any], after: dict[Any, Any]) -> list[str]:
    """A line for each difference."""
    lines = []
    for name in before:
        if isinstance(before[name], dict):
            lines += [f"{name}: {line}" for line in changes(_both(before[name], after[name]), after[name])]
        elif before[name] != after.get(name):
            lines.append(f"{name}: was {before[name]!r}, is {after.get(name)!r}")
    return lines


def _both(before: dict[Any, Any], after: dict[Any, Any]) -> dict[Any, Any]:
    """`before`, with None for what is new."""
    return dict.fromkeys(after) | before


def _umask() -> str:
    """Read without changing it: other threads may be making files."""
    with open("/proc/self/status") as status:
        return next(line.split()[1] for line in status if line.startswith("Umask:"))
