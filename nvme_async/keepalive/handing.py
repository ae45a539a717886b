"""The predecessor's half: holding a controller still, saving it, and letting go of it, or going on
if nothing comes of it.

    freeze   no new work; what was posted is rung; from then on nothing of this process touches the
    queues' memory, doorbells or interrupts
    thaw     back to service: the successor didn't come about
    let_go   a successor has it: waiters are told, and every object of this process that could touch
        the controller is dropped

Commands that are out are not waited for. On the controller's home loop, with its lock held from
freeze to thaw or let_go.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from nvme_async import _hotpath
from nvme_async.driver.pcie.memory import let_go as let_go_of_pools
from nvme_async.errors import ConfigurationError, HandedOver, NvmeError, QueueShutdown
from nvme_async.keepalive.bundle import Bundle

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller
    from nvme_async.driver.pcie.loop_queue import LoopQueue

log = logging.getLogger("nvme_async")

_lent: list[Any] = []
"""Requests whose memory is this process's own and the controller may still reach: kept to the
process's end.
"""


def bundle(controller: Controller) -> Bundle:
    """See Controller.bundle()."""
    recorder, memory = controller.recorder, controller.memory
    if recorder is None or memory is None:
        if controller.state in ("ready", "resetting", "new"):
            raise ConfigurationError(
                f"{controller.uri} was opened without keepalive: nobody can take it over while it runs"
            )
        raise QueueShutdown(f"{controller.uri}: the controller is {controller.state}, there is nothing to take over")
    descriptors = {"pool": memory.pools[0].fd}
    descriptors |= {f"device.{name}": fd for name, fd in controller.device.descriptors().items()}
    descriptors |= {f"irq.{vector}": fd for vector, fd in enumerate(controller.queues.maker.event_fds)}
    return Bundle.of(controller.uri, recorder.manifest.body, descriptors)


async def save(controller: Controller) -> Bundle:
    """See Controller.save()."""
    async with controller._lock:
        await freeze(controller)
        try:
            saved = bundle(controller)
        except BaseException:
            await thaw(controller)
            raise
        await let_go(controller)
        return saved


def check_ready(controller: Controller) -> None:
    """Can it be saved now?"""
    if controller.state == "failed":
        raise controller.failure or QueueShutdown(f"{controller.uri}: the controller has failed")
    if controller.recorder is None:
        bundle(controller).close()  # raises, and says why
    if controller.state != "ready":
        raise QueueShutdown(f"{controller.uri}: the controller is {controller.state}")


async def freeze(controller: Controller) -> None:
    """Stops every queue pair, each in its own thread, and writes the saved state. If that fails,
    service has resumed when this raises.
    """
    check_ready(controller)
    assert controller.recorder is not None
    assert controller.memory is not None
    controller.state = "saving"
    try:
        await controller.recovery.stop()  # the watchdog will find late commands again
        queues = controller.queues.all()
        # The home loop's own first and at once, others at the same time.
        results = await asyncio.gather(
            *(controller.on_owner(queue, lambda queue=queue: queue.freeze()) for queue in queues),  # type: ignore[misc]
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if controller.state != "saving":
            raise controller.failure or QueueShutdown(f"{controller.uri}: the controller is {controller.state}")
        controller.recorder.record(quiesced=True)
        for pool in controller.memory.pools:
            pool.pause()
        await controller._call(lambda: controller.device.park(True))
    except BaseException as error:
        log.warning("%s: the save failed, service goes on: %r", controller.uri, error)
        await thaw(controller)
        raise


async def thaw(controller: Controller) -> None:
    """Service goes on where freeze() stopped it."""
    queues = controller.queues
    controller.device.park(False)
    for pool in controller.memory.pools if controller.memory is not None else ():
        pool.resume()

    def resume(queue: LoopQueue) -> None:
        queue.thaw()
        queue.hot.hold(bool(queue.qid) and queues.held)

    for queue in queues.all():
        try:
            await controller.on_owner(queue, lambda queue=queue: resume(queue))  # type: ignore[misc]
        except NvmeError as error:
            log.warning("%s: queue %d: %s", controller.uri, queue.qid, error)
            if queue.loop.is_running():
                # Its loop is stuck, and will find this when it goes on.
                queue.loop.call_soon_threadsafe(resume, queue)
    if controller.state == "saving":
        controller.state = "ready"
    if controller.recorder is not None:
        controller.recorder.note()
    controller.bundle_changed()  # it may be deposited again


async def let_go(controller: Controller) -> None:
    """A successor has the controller, or will. Touches neither the controller nor the pool."""
    controller.state = "handed over"
    controller.recorder = None
    sent = HandedOver(f"{controller.uri}: handed over to a successor, which gets the command's result", sent=True)
    unsent = HandedOver(f"{controller.uri}: handed over to a successor; the command was not sent")
    for namespace in controller.namespaces.values():
        namespace._set_gone(unsent)
    controller.adopted.on_drained = None
    controller.watch(False)
    memory, queues = controller.memory, controller.queues
    pools = memory.detach() if memory is not None else []

    def end(queue: LoopQueue) -> None:
        queue.deaf()
        _lent.extend(_hotpath.hand_over(queue.hot, sent, unsent))

    for queue in queues.all():
        try:
            await controller.on_owner(queue, lambda queue=queue: end(queue))  # type: ignore[misc]
        except NvmeError as error:
            log.warning("%s: queue %d: %s", controller.uri, queue.qid, error)
    queues.forget_all()
    await controller.recovery.stop()
    await controller.listener.stop()
    if controller.settlement is not None:
        await controller.settlement.stop()
    controller.listener.end()
    controller.device.detach()
    queues.maker.close_vectors()
    let_go_of_pools(pools)
    controller.bundle_changed()
