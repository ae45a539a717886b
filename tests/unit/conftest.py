"""A queue pair with its controller, for the tests that ask for one."""

import asyncio

import pytest
from ring_controller import RingController


@pytest.fixture
async def ring(request):
    controller = RingController(asyncio.get_running_loop(), **getattr(request, "param", {}))
    yield controller
    controller.close()
