"""Fixtures of the driver's tests: device addresses, event loops, options with short time limits.

NVME_ASYNC_TEST_URIS (separated by blanks) replaces the emulated controllers by others, for example
"pci:0000:01:00.0". Their contents are lost, and tests that need an emulated controller's faults are
skipped.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from driving import FAST, leftovers
from wire import VECTORS, Wire

import nvme_async
from nvme_async.driver.namespace import Namespace
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.device import EmulatedDevice
from nvme_async.keepalive.controller import Controller

OVERRIDE = "NVME_ASYNC_TEST_URIS"

MEDIA = {
    "512": "emulated:size=64MiB,block=512",
    "4096": "emulated:size=64MiB,block=4096",
    "file512": "emulated:size=64MiB,block=512,medium=file,path={tmp}/medium",
    "file4096": "emulated:size=64MiB,block=4096,medium=file,path={tmp}/medium",
    "null512": "emulated:size=64MiB,block=512,medium=null",
    "null4096": "emulated:size=64MiB,block=4096,medium=null",
}
DEFAULT_MEDIA = ("512", "4096")
# The address that error tests use: only an emulated controller can be made to fail.
FAULTY = "emulated:size=64MiB,block=512"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "media(*names): which of conftest's MEDIA the `address` fixture goes through")
    config.addinivalue_line("markers", "options(**options): how the `controller` fixture opens")
    config.addinivalue_line("markers", "both_loops: run on asyncio's and on uvloop's event loop")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("both_loops"):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "address" in metafunc.fixturenames:
        if override := os.environ.get(OVERRIDE):
            metafunc.parametrize("address", override.split(), indirect=True)
        else:
            marker = metafunc.definition.get_closest_marker("media")
            names = marker.args if marker else DEFAULT_MEDIA
            metafunc.parametrize("address", [MEDIA[name] for name in names], ids=names, indirect=True)


@pytest.fixture
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A device address."""
    text: str = request.param
    return text.replace("{tmp}", str(tmp_path))


@pytest.fixture
def faulty() -> str:
    """The address of a controller that can be made to fail."""
    override = os.environ.get(OVERRIDE)
    if override:
        for uri in override.split():
            if uri.startswith("emulated:"):
                return uri
        pytest.skip("needs an emulated controller's faults")
    return FAULTY


@pytest.fixture
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Short timeouts, and the options of the test's `options` marker."""
    marker = request.node.get_closest_marker("options")
    return {**FAST, **(marker.kwargs if marker else {})}


@pytest.fixture
async def controller(address: str, options: dict[str, Any]) -> AsyncIterator[Controller]:
    async with nvme_async.open(address, **options) as controller:
        yield controller


@pytest.fixture
def ns(controller: Controller) -> Namespace:
    """Its first namespace."""
    return next(iter(controller.namespaces.values()))


@pytest.fixture
async def failing(faulty: str, options: dict[str, Any]) -> AsyncIterator[Controller]:
    """A controller whose `faults()` the test may use."""
    async with nvme_async.open(faulty, **options) as controller:
        yield controller


@pytest.fixture
def served(tmp_path: Path) -> Iterator[EmulatedController]:
    """An emulated controller on a socket, for tests that replay other projects' clients."""
    with EmulatedController(f"size=64MiB,block=512,queues=2,vectors={VECTORS},reactor=own") as controller:
        # SPDK expects a directory in which the socket has this name.
        controller.listen(str(tmp_path / "cntrl"))
        yield controller


@pytest.fixture
def wire(served: EmulatedController, tmp_path: Path) -> Iterator[Wire]:
    with Wire(str(tmp_path / "cntrl")) as wire:
        yield wire


@pytest.fixture(autouse=True)
def _nothing_stays_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """No pool, device descriptor or emulator thread outlives a test of the driver."""
    if not request.node.path.name.startswith("test_driver"):
        yield
        return
    before = leftovers(doorbells=False)
    yield
    limit = time.monotonic() + 10
    while (left := leftovers(doorbells=False) - before) and time.monotonic() < limit:
        gc.collect()  # tracebacks, for example of logged errors, keep device handles alive
        time.sleep(0.005)  # a thread that has ended may be listed for a moment
    assert left == set()


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A controller that outlives its clients; `emulated:kept` connects to it."""
    gc.collect()
    others = leftovers(doorbells=False)
    emulator = EmulatedController("size=16MiB,block=512")
    emulator.others = others  # type: ignore[attr-defined]

    def start(cls: Any, options: str, *, timeout: float = 10.0) -> Any:
        limit = time.monotonic() + 30
        while True:
            try:
                socket = emulator.connect()
                break
            except OSError as error:  # a cancelled open()'s thread may have come late, and be on its way out
                if error.errno != errno.EBUSY or time.monotonic() > limit:
                    raise
                time.sleep(0.005)
        device = super(EmulatedDevice, cls).from_socket(socket, uri=f"emulated:{options}", timeout=timeout)
        device.emulator = emulator
        return device

    def close(self: EmulatedDevice) -> None:
        super(EmulatedDevice, self).close()

    monkeypatch.setattr(EmulatedDevice, "start", classmethod(start))
    monkeypatch.setattr(EmulatedDevice, "close", close)
    yield emulator
    emulator.close()
