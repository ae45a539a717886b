"""A keeper as it runs in earnest, for the tests here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from keeper_process import FOLDER, empty, eventually

from nvme_async.keepalive.keeper.client import KeeperClient


@pytest.fixture(scope="module")
def keeper_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A keeper as it runs in production: isolated, without this package."""
    path = str(tmp_path_factory.mktemp("keeper") / "keeper.sock")
    process = subprocess.Popen([sys.executable, "-I", "-S", FOLDER, "--socket", path, "--quiet"])
    eventually(lambda: os.path.exists(path))
    yield path
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert not os.path.exists(path)


@pytest.fixture
def path(keeper_path: str) -> Iterator[str]:
    """The keeper, empty."""
    assert empty(keeper_path)
    yield keeper_path
    eventually(lambda: empty(keeper_path))


@pytest.fixture
def client(path: str) -> Iterator[KeeperClient]:
    with KeeperClient(path) as client:
        yield client
