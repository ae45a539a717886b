"""From an address to a controller, without regard to predecessors."""

from __future__ import annotations

from typing import TypeVar

from nvme_async.driver.controller import Controller
from nvme_async.driver.options import Options
from nvme_async.driver.schemes import open_transport
from nvme_async.driver.transport import system_errors

C = TypeVar("C", bound=Controller)


async def open_controller(uri: str, options: Options, make: type[C] = Controller) -> C:  # type: ignore[assignment]
    """Brings a controller up. make: its class."""
    with system_errors(uri):
        transport = await open_transport(uri, options)
    try:
        controller = make(transport, options)
    except BaseException:
        transport.abandon()
        raise
    with system_errors(uri):
        await controller.bring_up()
    return controller
