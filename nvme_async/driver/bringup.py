"""From any state of the hardware to a working controller: at open(), and again at each reset
(Base 2.0, 3.5.1).

One table of steps for both. The registers, the admin queue, Identify Controller and one I/O queue
pair are required; everything else has a fallback. A lost or refused required command leads to
another attempt from the controller's reset on, up to ATTEMPTS. Every wait has its own limit:
registers CAP.TO or CRTO, commands `admin_timeout`, the namespaces NAMESPACES_LIMITS of those.

On the controller's home loop, with its lock held or before anything else knows of it.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import logging
from collections.abc import Sequence

from nvme_async.driver import command_sets, discovery
from nvme_async.driver.admin_queue import admin_limit
from nvme_async.driver.context import ControllerContext
from nvme_async.driver.delays import wants_retry_delays
from nvme_async.driver.effects import Effects
from nvme_async.driver.power import Power
from nvme_async.driver.scanner import Scanner
from nvme_async.driver.steps import Degraded, Plan, Step
from nvme_async.errors import CommandError, ControllerError, ControllerFatal, ControllerTimeout, NvmeError
from nvme_async.spec import commands
from nvme_async.spec.features import HostBehavior, Timestamp
from nvme_async.spec.identify import Ctratt, Oncs
from nvme_async.spec.opcodes import CopyFormat, Feature

log: logging.Logger = logging.getLogger("nvme_async")

ATTEMPTS = 3
NAMESPACES_LIMITS = 5
"""Identify of all namespaces may take this many times the limit of one command; then service
starts without the missing ones.
"""


class BringUp:
    """Attributes:
    degraded: the features that the controller lacks.
    """

    def __init__(self, controller: ControllerContext, scanner: Scanner, effects: Effects, power: Power) -> None:
        self._controller = controller
        self._scanner = scanner
        self._effects = effects
        self._power = power
        self.degraded: Degraded = controller.degraded
        self._plan = Plan(self.degraded)
        self._without: set[str] = set()  # steps whose loss has cost an attempt

    @property
    def at(self) -> str:
        """The current step."""
        return self._plan.current.name if self._plan.current is not None else "the device"

    async def first(self) -> None:
        """At open(). If this raises, the controller must release what it has made."""
        await self._plan.run(self._controller.transport.open_steps())
        await self._attempts(ControllerError(f"{self._controller.uri}: the bring-up was restarted"))

    async def again(self, reason: str) -> None:
        """A reset. The I/O queues are silent and held when it starts, and still at the end."""
        await self._attempts(ControllerError(f"{self._controller.uri}: the controller was reset ({reason})"))

    async def _attempts(self, error: NvmeError) -> None:
        """error: the exception for in-flight commands that aren't resent."""
        controller = self._controller
        self._without.clear()
        for attempt in itertools.count(1):
            try:
                await self._plan.run(self._steps(error))
                if controller.failure is not None:
                    raise controller.failure
                return
            except NvmeError as failure:
                step = self._plan.current
                if controller.failure is not None:
                    raise controller.failure from None
                may_help = isinstance(failure, (CommandError, ControllerTimeout, ControllerFatal))
                if (
                    not controller.transport.another_attempt(may_help and attempt < ATTEMPTS)
                    or controller.lifecycle.closing
                    or (step is not None and not step.repeatable)
                ):
                    raise
                log.warning("%s: attempt %d: %s: %s", controller.uri, attempt, self.at, failure)
                if step is not None:
                    self._without.add(step.name)
                await controller.transport.queues.silence()

    def _steps(self, error: NvmeError) -> Sequence[Step]:
        controller, transport = self._controller, self._controller.transport
        return [
            *transport.connect_steps(self.degraded, error),
            Step("Identify Controller", self._identify),
            Step(
                "limits of the NVM command set", self._identify_nvm, lambda: "the limits of the commands' fields apply"
            ),
            Step(
                "I/O Command Set Profile",
                lambda: command_sets.choose(controller),
                lambda: "the command sets that the controller has enabled apply",
            ),
            Step(
                "Host Behavior Support",
                self._host_behavior,
                lambda: (
                    "namespaces with a guard of 32 or 64 bits, or with storage tags, can't be used, nothing is "
                    "copied between namespaces, and the controller asks for no retries"
                ),
            ),
            *self._event_steps(),
            Step("Timestamp", self._timestamp, lambda: "the controller's clock stays as it is"),
            *transport.queue_steps(self.degraded, self._without),
            Step("Autonomous Power State Transition", self._power_transitions, lambda: "as the controller has it"),
            Step(
                "Commands Supported and Effects log",
                self._effects.read,
                lambda: "commands have the effects of the specification",
            ),
            Step("namespaces", self._namespaces, self._namespaces_later),
        ]

    def _event_steps(self) -> Sequence[Step]:
        controller = self._controller
        if not controller.transport.has_events:
            return []
        fallback = "the controller chooses what it reports"
        return [Step("Asynchronous Event Configuration", controller._enable_events, lambda: fallback)]

    async def _identify(self) -> None:
        controller = self._controller
        controller._identified(await discovery.identify_controller(controller))

    async def _identify_nvm(self) -> None:
        controller = self._controller
        controller.identify_nvm = None
        controller.identify_nvm = await discovery.identify_command_set(controller)

    async def _host_behavior(self) -> None:
        """What is available to hosts only that declare to support it (Base 2.1, 5.1.25.1.14): LBA
        formats beyond the 16-bit guard (NVM Command Set 1.1, 5.3.1.4), Copy from other namespaces
        (3.3.2), and delays before commands are sent again (ACRE; Base 2.1, 3.3.3.2.1).
        """
        controller = self._controller
        identify = controller.identify
        behavior = HostBehavior(
            acre=wants_retry_delays(identify),
            lbafee=Ctratt.EXTENDED_LBA_FORMATS in identify.attributes,
            cdfe=identify.ocfs & (1 << CopyFormat.NAMESPACE | 1 << CopyFormat.NAMESPACE_EXTENDED_PI),
        )
        if controller.transport.configured and behavior != HostBehavior():
            await controller._submit_admin(commands.set_features(Feature.HOST_BEHAVIOR), behavior.encode())

    async def _timestamp(self) -> None:
        """The controller's logs have the host's time (Base 2.1, 5.1.25.1.10), as with Linux."""
        controller = self._controller
        if controller.transport.configured and Oncs.TIMESTAMP in controller.identify.nvm_commands:
            now = Timestamp.of(datetime.datetime.now(datetime.UTC))
            await controller._submit_admin(commands.set_features(Feature.TIMESTAMP), now.encode())

    async def _power_transitions(self) -> None:
        if self._controller.transport.configured and (wanted := self._power.at_bring_up()) is not None:
            await self._controller._submit_admin(*wanted)

    async def _namespaces(self) -> None:
        controller = self._controller
        limit = NAMESPACES_LIMITS * admin_limit(controller.options)
        try:
            async with asyncio.timeout(limit) as timer:
                await self._scanner.scan()
        except TimeoutError as error:
            if isinstance(error, NvmeError) or not timer.expired():
                raise
            raise ControllerTimeout(f"{controller.uri}: Identify of its namespaces took over {limit:g} s") from None

    def _namespaces_later(self) -> str:
        self._scanner.later("not read at the bring-up")
        return "the known ones stay, and are read again later"
