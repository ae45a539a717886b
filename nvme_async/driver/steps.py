"""Bring-up and reset as tables of steps, each required or optional.

A required step that fails ends the attempt. An optional one has a fallback: its failure is logged
once, stays visible in `Degraded` until the step succeeds, and affects nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import attrs

from nvme_async.errors import CommandError, ControllerFatal, ControllerGone, NvmeError, QueueShutdown

log: logging.Logger = logging.getLogger("nvme_async")
T = TypeVar("T")

PAUSES = (0.01, 0.1)
"""Pauses in seconds before a refused command is resent, one per retry."""


@attrs.frozen
class Step:
    """Attributes:
    name: its subject, in the specification's terms.
    run: executes it.
    fallback: applies the fallback and returns its description; None: the step is required. It may
        be called several times.
    repeatable: a new attempt, from the controller's reset on, may help if this step failed.
    """

    name: str
    run: Callable[[], Awaitable[object]]
    fallback: Callable[[], str] | None = None
    repeatable: bool = True


class Degraded:
    """The features that a controller lacks: {step: reason}. The same reason is logged once."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._logged: set[tuple[str, str]] = set()
        self.reasons: dict[str, str] = {}

    def add(self, what: str, error: BaseException | str, instead: str) -> None:
        reason = str(error) or repr(error)
        self.reasons[what] = f"{reason}; {instead}"
        if (what, reason) not in self._logged:
            self._logged.add((what, reason))
            log.warning("%s: %s: %s; %s", self._uri, what, reason, instead)

    def clear(self, what: str) -> None:
        self.reasons.pop(what, None)


async def patiently(run: Callable[[], Awaitable[T]]) -> T:
    """run(), repeated after a pause if the controller refused without Do Not Retry."""
    for pause in PAUSES:
        try:
            return await run()
        except CommandError as error:
            if error.dnr:
                raise
        await asyncio.sleep(pause)
    return await run()


class Plan:
    """Runs steps; `current` is the present one, for error messages and for the handling of a
    failure.
    """

    def __init__(self, degraded: Degraded) -> None:
        self._degraded = degraded
        self.current: Step | None = None

    async def run(self, steps: Iterable[Step]) -> None:
        """Runs one after another. Raises the exception of a required step, which is then
        `current`.
        """
        for step in steps:
            self.current = step
            try:
                await patiently(step.run)
            except NvmeError as error:
                # CSTS.CFS is a failure of the controller, not of a step.
                if step.fallback is None or isinstance(error, (ControllerGone, ControllerFatal, QueueShutdown)):
                    raise
                self._degraded.add(step.name, error, step.fallback())
            else:
                if step.fallback is not None:
                    self._degraded.clear(step.name)
        self.current = None
