"""Bring-up and reset as tables of steps, each required or optional.

A required step that fails ends the attempt. An optional one has a fallback: its failure is logged
once, stays visible in `Degraded` until the step succeeds, and takes nothing else away.
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
"""Seconds before a refused command is sent again, so often as there are pauses."""


@attrs.frozen
class Step:
    """Attributes:
    name: what it is about, in the specification's words.
    run: does it.
    fallback: what is done without it, and what to say of that; None: the step is required. It may
        be called several times.
    repeatable: a new attempt, from the controller's reset on, may help where this step has failed.
    """

    name: str
    run: Callable[[], Awaitable[object]]
    fallback: Callable[[], str] | None = None
    repeatable: bool = True


class Degraded:
    """What a controller does without, and why: {step: reason}. The same reason is logged once."""

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
    """run(), and again after a pause where the controller has refused and doesn't say Do Not Retry."""
    for pause in PAUSES:
        try:
            return await run()
        except CommandError as error:
            if error.dnr:
                raise
        await asyncio.sleep(pause)
    return await run()


class Plan:
    """Runs steps, and says which one it is at: `current`, for error messages and for who decides
    what becomes of a failure.
    """

    def __init__(self, degraded: Degraded) -> None:
        self._degraded = degraded
        self.current: Step | None = None

    async def run(self, steps: Iterable[Step]) -> None:
        """One after the other. Raises what a required step raises; `current` is that step then."""
        for step in steps:
            self.current = step
            try:
                await patiently(step.run)
            except NvmeError as error:
                # CSTS.CFS is no step's failure but the controller's.
                if step.fallback is None or isinstance(error, (ControllerGone, ControllerFatal, QueueShutdown)):
                    raise
                self._degraded.add(step.name, error, step.fallback())
            else:
                if step.fallback is not None:
                    self._degraded.clear(step.name)
        self.current = None
