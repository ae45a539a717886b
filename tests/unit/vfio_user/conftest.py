"""A scripted vfio-user server, and the emulated controller behind one."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from fake_vfio_user import (
    FakeServer,
    open_fds,
)
from raw_vfio_user import (
    RawClient,
)

from nvme_async.emulator import EmulatedController


@pytest.fixture(scope="module")
def no_garbage_of_others() -> None:
    """Its descriptors would be closed in the middle of a test that counts them."""
    gc.collect()


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    before = len(open_fds())
    yield
    assert len(open_fds()) == before


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def controller():
    with EmulatedController("size=1MiB,vectors=65", patience=0.5) as controller:
        yield controller


@pytest.fixture
def client(controller):
    with RawClient(controller.connect()) as client:
        yield client
