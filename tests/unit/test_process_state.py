"""The check that a test leaves the process as it was."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import process_state
import pytest

from nvme_async.driver import schemes
from nvme_async.keepalive import config

Undo = Callable[[], object]


def set_environment() -> Undo:
    os.environ["NVME_ASYNC_MARK"] = "1"
    return lambda: os.environ.__delitem__("NVME_ASYNC_MARK")


def set_umask() -> Undo:
    before = os.umask(0o137)
    return lambda: os.umask(before)


def set_folder() -> Undo:
    before = os.getcwd()
    os.chdir(Path(__file__).parent)
    return lambda: os.chdir(before)


def set_handler() -> Undo:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    return lambda: signal.signal(signal.SIGUSR2, before)


def set_scheme() -> Undo:
    schemes.register_transport("mark", "nowhere")
    return lambda: schemes._modules.__delitem__("mark")


def set_options() -> Undo:
    config.command_line.fused = True
    return lambda: setattr(config.command_line, "fused", None)


def set_level() -> Undo:
    log = logging.getLogger("nvme_async")
    before = log.level
    log.setLevel(before + 1)
    return lambda: log.setLevel(before)


def set_limit() -> Undo:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (set_environment, "environment: NVME_ASYNC_MARK: was None"),
        (set_umask, "umask"),
        (set_folder, "working directory"),
        (set_handler, "SIGUSR2"),
        (set_scheme, "schemes of controllers: mark"),
        (set_options, "options of a command line"),
        (set_level, "logger nvme_async"),
        (set_limit, "RLIMIT_NOFILE"),
    ],
)
def test_what_a_test_leaves_behind_is_named(change: Callable[[], Undo], name: str) -> None:
    before = process_state.current()
    undo = change()
    try:
        [line] = process_state.changes(before, process_state.current())
    finally:
        undo()
    assert line.startswith(name)
    assert process_state.changes(before, process_state.current()) == []
