"""A queue pair with its controller, for the tests that ask for one."""

import asyncio
from collections.abc import Iterator

import pytest
from pools import IOVA, PAGE
from ring_controller import RingController
from succession import Scene

from nvme_async.native._dma import Pool


@pytest.fixture
async def ring(request):
    controller = RingController(asyncio.get_running_loop(), **getattr(request, "param", {}))
    yield controller
    controller.close()


@pytest.fixture
async def scene():
    scene = Scene()
    yield scene
    await scene.close()


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(Pool.size_for(64 * PAGE), iova=IOVA, name="test", hugepages="never") as pool:
        yield pool
