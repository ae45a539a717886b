"""Power states of a controller (Base 2.1, 8.1.18): the present one, autonomous transitions to
non-operational states (APST), and what a non-operational state may consume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import attrs

from nvme_async.errors import ConfigurationError
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.features import (
    AutonomousPowerStateTransition,
    NonOperationalPowerState,
    PowerManagement,
    PowerStateTransition,
    decode_power_state_transitions,
    power_state_transitions,
)
from nvme_async.spec.identify import Ctratt, IdentifyController, PowerState
from nvme_async.spec.opcodes import Feature, FeatureSelect

BANDS = ((15_000, 100), (100_000, 2_000))
"""Linux's defaults: a state that is entered and left within the first number of microseconds is
entered after the second number of idle milliseconds; one state of each band.
"""
MOST_LATENCY_US = 1 << 32


class Administered(Protocol):
    """A controller, here or in another process."""

    uri: str
    identify: IdentifyController

    async def admin(self, command: Command, buffer: Any = None) -> Completion: ...


@attrs.frozen
class PowerSetting:
    """A value of feature 02h.

    Attributes:
        state: number of the power state.
        workload: hint, 0 to 7 (8.1.18.3).
        watts: maximum power in that state, 0.0 if the controller doesn't report it.
        operational: I/O is processed in it; else I/O leads back to the last operational state.
    """

    state: int
    workload: int
    watts: float
    operational: bool


@attrs.frozen
class AutonomousTransitions:
    """Feature 0Ch. transitions: by power state; with itpt 0 it isn't left by itself."""

    enabled: bool
    transitions: tuple[PowerStateTransition, ...]


def transitions_for(states: Sequence[PowerState], latency_us: int) -> tuple[PowerStateTransition, ...]:
    """The transitions that Linux would set: to non-operational states whose exit latency is within
    `latency_us`, and that fit one of BANDS; each state goes to the next deeper one of them.
    """
    table: list[PowerStateTransition] = []
    target = PowerStateTransition(itps=0, itpt=0)
    band = len(BANDS)
    for number in range(len(states) - 1, -1, -1):
        table.append(target)
        state = states[number]
        if state.operational or state.exlat > latency_us:
            continue
        total = state.enlat + state.exlat
        fitting = next((index for index, (most, _) in enumerate(BANDS) if total <= most), band)
        if fitting < band:
            band = fitting
            target = PowerStateTransition(itps=number, itpt=BANDS[fitting][1])
    return tuple(reversed(table))


def _autonomous(identify: IdentifyController, latency_us: int) -> tuple[Command, bytes]:
    transitions = transitions_for(identify.power_states, latency_us) if latency_us else ()
    enabled = AutonomousPowerStateTransition(apste=any(one.itpt for one in transitions))
    command = commands.set_features(Feature.AUTONOMOUS_POWER_STATE_TRANSITION, enabled.to_int())
    return command, power_state_transitions(transitions)


class Power:
    """controller.power: coroutines of admin commands, so from any loop, and with its errors.

    What is set without `save` ends with the controller's next reset, except the latency
    (set_latency()), which is set again.
    """

    def __init__(self, controller: Administered, latency_us: int | None = None) -> None:
        """latency_us: see Options.apst_latency_us."""
        self._controller = controller
        self.latency_us: int | None = latency_us
        """The budget for autonomous transitions; None: they are as the controller has them."""

    @property
    def states(self) -> tuple[PowerState, ...]:
        """The power states that exist, by number (Identify Controller)."""
        return self._controller.identify.power_states

    async def get(self, select: FeatureSelect = FeatureSelect.CURRENT) -> PowerSetting:
        """The present state; or the default or saved one."""
        answer = await self._controller.admin(commands.get_features(Feature.POWER_MANAGEMENT, sel=select))
        value = PowerManagement.from_int(answer.dw0)
        known = value.ps < len(self.states)
        return PowerSetting(
            value.ps,
            value.wh,
            self.states[value.ps].max_power_watts if known else 0.0,
            self.states[value.ps].operational if known else True,
        )

    async def set(self, state: int, *, workload: int = 0, save: bool = False) -> None:
        """Changes the power state. save: also after the next power cycle, if the controller can."""
        if not 0 <= state < len(self.states):
            raise ConfigurationError(
                f"{self._controller.uri}: power state {state}, must be 0 to {len(self.states) - 1}"
            )
        if not 0 <= workload <= 7:
            raise ConfigurationError(f"{self._controller.uri}: workload hint {workload}, must be 0 to 7")
        value = PowerManagement(ps=state, wh=workload).to_int()
        await self._controller.admin(commands.set_features(Feature.POWER_MANAGEMENT, value, save=save))

    async def autonomous(self, select: FeatureSelect = FeatureSelect.CURRENT) -> AutonomousTransitions:
        """The autonomous transitions. CommandError if the controller has none."""
        answer = await self._controller.admin(
            commands.get_features(Feature.AUTONOMOUS_POWER_STATE_TRANSITION, sel=select)
        )
        table = decode_power_state_transitions(answer.data or b"")
        return AutonomousTransitions(bool(answer.dw0 & 1), table[: len(self.states)])

    async def set_latency(self, microseconds: int) -> None:
        """Enables autonomous transitions to non-operational states that are left within so many
        microseconds, as Linux does (transitions_for()); 0 disables them. Again at each reset.
        """
        self._check_autonomous()
        if not 0 <= microseconds < MOST_LATENCY_US:
            raise ConfigurationError(f"{self._controller.uri}: a latency of {microseconds} us: must be 0 to 2**32 - 1")
        await self._controller.admin(*_autonomous(self._controller.identify, microseconds))
        self.latency_us = microseconds

    def _check_autonomous(self) -> None:
        if not self._controller.identify.apsta & 1:
            raise ConfigurationError(
                f"{self._controller.uri}: the controller has no autonomous power state transitions"
            )

    async def permissive(self) -> bool:
        """May background work exceed a non-operational state's power (feature 11h)?"""
        self._check_permissive()
        answer = await self._controller.admin(commands.get_features(Feature.NON_OPERATIONAL_POWER_STATE))
        return NonOperationalPowerState.from_int(answer.dw0).noppme

    async def set_permissive(self, allowed: bool) -> None:
        """Allows that, or forbids it."""
        self._check_permissive()
        value = NonOperationalPowerState(noppme=allowed).to_int()
        await self._controller.admin(commands.set_features(Feature.NON_OPERATIONAL_POWER_STATE, value))

    def _check_permissive(self) -> None:
        if Ctratt.NON_OPERATIONAL_POWER_PERMISSIVE not in self._controller.identify.attributes:
            raise ConfigurationError(
                f"{self._controller.uri}: the controller has no non-operational power state permissive mode"
            )

    def at_bring_up(self) -> tuple[Command, bytes] | None:
        """What bring-up and reset send; None: nothing."""
        identify = self._controller.identify
        if self.latency_us is None or not identify.apsta & 1:
            return None
        return _autonomous(identify, self.latency_us)
