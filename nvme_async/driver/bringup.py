"""From any state of the hardware to a controller that serves: at open(), and again at each reset
(Base 2.0, 3.5.1).

One table of steps for both. Required are the registers, the admin queue, Identify Controller and
one I/O queue pair; everything else has a fallback. A lost or refused required command leads to
another attempt from the controller's reset on, up to ATTEMPTS. Every wait has its own limit:
registers CAP.TO or CRTO, commands `admin_timeout`, the namespaces NAMESPACES_LIMITS of those.

On the controller's home loop, with its lock held or before anything else knows of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nvme_async.device.quirks import Quirk
from nvme_async.driver import command_sets, discovery
from nvme_async.driver.pcie.registers import check_supported
from nvme_async.driver.recovery import RETRYABLE
from nvme_async.driver.steps import Degraded, Plan, Step
from nvme_async.errors import (
    ControllerError,
    ControllerFatal,
    ControllerGone,
    ControllerTimeout,
    NvmeError,
    QueueShutdown,
)

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller

log = logging.getLogger("nvme_async")

ATTEMPTS = 3
NAMESPACES_LIMITS = 5
"""How many times the limit of one command Identify of all namespaces may take, before service
begins without those that are missing.
"""
_DOORBELL_BUFFERS = "Doorbell Buffer Config"


class BringUp:
    """Attributes:
    degraded: what the controller does without.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.degraded = Degraded(controller.uri)
        self._plan = Plan(self.degraded)
        self._without: set[str] = set()  # steps whose loss has cost an attempt

    @property
    def at(self) -> str:
        """The step that is under way."""
        return self._plan.current.name if self._plan.current is not None else "the device"

    async def first(self) -> None:
        """At open(). What it has made is the controller's to release if this raises."""
        await self._plan.run([Step("registers", self._read_registers, repeatable=False)])
        await self._attempts(ControllerError(f"{self._controller.uri}: the bring-up was begun anew"))

    async def again(self, reason: str) -> None:
        """A reset. The I/O queues are silent and held when it begins, and still so at the end."""
        await self._attempts(ControllerError(f"{self._controller.uri}: the controller was reset ({reason})"))

    async def _attempts(self, error: NvmeError) -> None:
        """error: what commands that were out, and aren't sent again, end with."""
        controller = self._controller
        self._without.clear()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._plan.run(self._steps(error))
                if controller.failure is not None:
                    raise controller.failure
                return
            except NvmeError as failure:
                step = self._plan.current
                if controller.failure is not None:
                    raise controller.failure from None
                if (
                    attempt == ATTEMPTS
                    or controller.lifecycle.closing
                    or (step is not None and not step.repeatable)
                    or isinstance(failure, (ControllerGone, QueueShutdown))
                ):
                    raise
                log.warning("%s: attempt %d: %s: %s", controller.uri, attempt, self.at, failure)
                if step is not None:
                    self._without.add(step.name)
                await controller.queues.silence()

    def _steps(self, error: NvmeError) -> Sequence[Step]:
        controller = self._controller
        queues = controller.queues
        return [
            Step("CC.EN=0", self._disable, repeatable=False),
            # The controller has let go of everything: what was out may be sent again from the same
            # pages.
            Step("queue memory", lambda: self._prepare(error), repeatable=False),
            Step("CC.EN=1", self._enable, repeatable=False),
            Step("Identify Controller", self._identify),
            Step("limits of the NVM command set", self._identify_nvm, lambda: "those of the commands' fields count"),
            Step(
                "I/O Command Set Profile",
                lambda: command_sets.choose(controller),
                lambda: "the command sets are those that the controller has enabled",
            ),
            Step("Number of Queues", queues.negotiate, queues.assume),
            Step(
                "Asynchronous Event Configuration",
                controller.listener.enable,
                lambda: "the controller reports what it likes",
            ),
            Step(_DOORBELL_BUFFERS, self._shadow_doorbells),
            Step("I/O queue pairs", lambda: queues.create_all(self.degraded)),
            Step(
                "Commands Supported and Effects log",
                controller.effects.read,
                lambda: "commands have the effects that the specification says",
            ),
            Step("namespaces", self._namespaces, self._namespaces_later),
        ]

    async def _read_registers(self) -> None:
        controller = self._controller
        await controller.registers.settle()
        controller.cap = await controller.registers.cap()
        controller.vs = await controller.registers.vs()
        check_supported(controller.cap, controller.uri)

    async def _disable(self) -> None:
        """CC.EN=0, or the device's own reset where that doesn't help (3.7.2)."""
        controller = self._controller
        try:
            await controller.registers.disable(controller.cap)
        except ControllerTimeout:
            await controller.call(controller.device.reset)
            await controller.call(controller.queues.maker.set_vectors_again)
            await controller.registers.disable(controller.cap)

    async def _prepare(self, error: NvmeError) -> None:
        controller = self._controller
        if controller.memory is None:
            await controller.make_memory()
        else:
            await controller.queues.restart(RETRYABLE, error)

    async def _enable(self) -> None:
        controller = self._controller
        await controller.call(controller.device.enable_bus_mastering)
        admin = controller.queues.prepare_admin()
        for all_command_sets in command_sets.to_try(controller.cap):
            try:
                await controller.registers.enable(
                    controller.cap,
                    entries=admin.hot.entries,
                    asq=admin.hot.sq_iova,
                    acq=admin.hot.cq_iova,
                    all_command_sets=all_command_sets,
                )
                break
            except (ControllerFatal, ControllerTimeout) as error:
                if not all_command_sets or not controller.cap.nvm_command_set:
                    raise
                self.degraded.add("CC.CSS=110b", error, "the NVM command set alone")
                await self._disable()
        admin.silence(False)

    async def _identify(self) -> None:
        controller = self._controller
        controller.identified(await discovery.identify_controller(controller))

    async def _identify_nvm(self) -> None:
        controller = self._controller
        controller.identify_nvm = None
        controller.identify_nvm = await discovery.identify_command_set(controller)

    async def _shadow_doorbells(self) -> None:
        """Its refusal is dealt with where it is sent. A lost one is not optional: nobody knows
        whether the controller still listens to the doorbells, so that is begun anew without.
        """
        controller = self._controller
        queues = controller.queues
        offered = controller.identify.oacs & 1 << 8 and Quirk.NO_DOORBELL_BUFFER not in controller.quirks
        if not controller.options.shadow_doorbells or not offered:
            return
        if _DOORBELL_BUFFERS in self._without:
            await queues.maker.drop_shadow(queues.io_queues())
            self.degraded.add(_DOORBELL_BUFFERS, "no answer", "doorbells are registers")
            return
        await queues.maker.configure_shadow(queues.io_queues())

    async def _namespaces(self) -> None:
        controller = self._controller
        limit = NAMESPACES_LIMITS * controller.admin_queue.limit
        try:
            async with asyncio.timeout(limit) as timer:
                await controller.scanner.scan()
        except TimeoutError as error:
            if isinstance(error, NvmeError) or not timer.expired():
                raise
            raise ControllerTimeout(f"{controller.uri}: Identify of its namespaces took over {limit:g} s") from None

    def _namespaces_later(self) -> str:
        self._controller.scanner.later("not read at the bring-up")
        return "those that were known stay, and they are read again later"
