"""The predecessor's half: saving a running controller, then releasing it or resuming.

On the controller's home loop, with its lock held from suspend to resume or release.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from nvme_async.driver.pcie import suspension
from nvme_async.errors import QueueShutdown
from nvme_async.keepalive.bundle import Bundle
from nvme_async.keepalive.kept import KeptController
from nvme_async.keepalive.phases import Phases

log: logging.Logger = logging.getLogger("nvme_async")


async def save(controller: KeptController) -> Bundle:
    """See Controller.save()."""
    async with controller._lock:
        await suspend(controller)
        try:
            saved = controller.bundle()
        except BaseException:
            await resume(controller)
            raise
        release(controller)
        return saved


def check_ready(controller: KeptController) -> None:
    """Raises why the controller cannot be saved now."""
    if controller.state == "failed":
        raise controller.failure or QueueShutdown(f"{controller.uri}: the controller has failed")
    if controller.recorder is None:
        controller.bundle().close()  # raises, and says why
    if controller.state != "ready":
        raise QueueShutdown(f"{controller.uri}: the controller is {controller.state}")


async def suspend(controller: KeptController) -> None:
    """Stops the controller's queues and writes the saved state. If that fails, service has resumed
    when this raises.
    """
    check_ready(controller)
    recorder = controller.recorder
    assert recorder is not None
    phases = controller.phases = Phases(controller.uri)

    def write() -> None:
        with phases.of("write"):
            recorder.record(saving=True)

    try:
        with phases.of("suspend"):
            await suspension.suspend(controller, write)
        phases.add("suspend", -phases.seconds["write"])
    except BaseException:
        controller._bundle_changed()
        raise


async def resume(controller: KeptController) -> None:
    """No successor took over: service continues."""
    await suspension.resume(controller)
    controller._bundle_changed()  # it may be deposited again


def release(controller: KeptController, *, later: bool = False) -> Callable[[], None]:
    """A successor has the controller, or will have it. later: see suspension.release()."""
    controller.recorder = None
    if controller.phases is not None:
        controller.phases.record("suspend", "write")
        log.info("%s: saved: %s", controller.uri, controller.phases)
    controller.adopted.on_drained = None
    finish = suspension.release(controller, later=later)
    controller._bundle_changed()
    return finish
