"""Power states: what is set arrives at the controller, and what the controller does by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from driver_line import SET_FEATURES
from driving import FAST, eventually, faults, pattern

import nvme_async
from nvme_async.cli.main import cli
from nvme_async.driver.power import PowerSetting
from nvme_async.errors import ConfigurationError, InvalidField
from nvme_async.spec import commands
from nvme_async.spec.features import PowerStateTransition, power_state_transitions
from nvme_async.spec.opcodes import Feature

URI = "emulated:size=16MiB,power_states=5"
APST = 0x0C


def counted(controller: nvme_async.Controller) -> dict[str, Any]:
    return faults(controller).counters()


async def test_the_present_state_has_a_limit_in_watts() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        power = controller.power
        assert [state.max_power_watts for state in power.states] == pytest.approx([25, 15, 8, 0.05, 0.005])
        assert [state.operational for state in power.states] == [True] * 3 + [False] * 2
        assert await power.get() == PowerSetting(0, 0, 25.0, True)
        await power.set(2, workload=3)
        assert await power.get() == PowerSetting(2, 3, 8.0, True)
        assert counted(controller)["power_state"] == 2
        for wrong, said in ((5, "power state 5, must be 0 to 4"), (-1, "power state -1")):
            with pytest.raises(ConfigurationError, match=said):
                await power.set(wrong)
        with pytest.raises(ConfigurationError, match="workload hint 8, must be 0 to 7"):
            await power.set(1, workload=8)
        assert await power.get() == PowerSetting(2, 3, 8.0, True)


async def test_io_leads_back_from_a_non_operational_state() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        await controller.power.set(1)
        await controller.power.set(4)
        assert not (await controller.power.get()).operational
        await controller.namespaces[1].write(0, pattern(4096))
        assert await controller.namespaces[1].read(0) == pattern(4096)
        assert counted(controller)["power_wakeups"] == 1
        assert (await controller.power.get()).state == 1


async def test_an_idle_controller_goes_to_sleep_by_itself_within_the_budget() -> None:
    async with nvme_async.open(URI, apst_latency_us=10_000, **FAST) as controller:
        apst = await controller.power.autonomous()
        assert apst.enabled
        assert apst.transitions == (PowerStateTransition(itps=3, itpt=100),) * 3 + (PowerStateTransition(0, 0),) * 2
        await eventually(lambda: counted(controller)["power_state"] == 3)
        await controller.namespaces[1].write(0, pattern(4096))
        assert counted(controller)["power_wakeups"] >= 1
        await eventually(lambda: counted(controller)["power_transitions"] >= 2)


async def test_the_budget_is_set_again_at_a_reset() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        assert not (await controller.power.autonomous()).enabled
        await controller.reset()
        assert not (await controller.power.autonomous()).enabled
        await controller.power.set_latency(100_000)
        apst = await controller.power.autonomous()
        assert [(one.itps, one.itpt) for one in apst.transitions] == [(3, 100)] * 3 + [(4, 2000), (0, 0)]
        await controller.reset()
        assert await controller.power.autonomous() == apst
        await controller.power.set_latency(0)
        await controller.reset()
        assert not (await controller.power.autonomous()).enabled
        with pytest.raises(ConfigurationError, match="a latency of -1 us"):
            await controller.power.set_latency(-1)


async def test_a_refusal_takes_nothing_away(caplog: Any) -> None:
    async with nvme_async.open(URI, apst_latency_us=100_000, **FAST) as controller:
        refusal = faults(controller).add(queue="admin", opcode=SET_FEATURES, cdw10=APST, fail=2, dnr=True)
        await controller.reset()
        assert refusal.hits == 1
        assert "as the controller has it" in controller.inspect()["degraded"]["Autonomous Power State Transition"]
        await controller.namespaces[1].write(0, pattern(4096))
        refusal.remove()
        await controller.reset()
        assert controller.inspect()["degraded"] == {}
        assert (await controller.power.autonomous()).enabled


async def test_permissive_mode() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        assert not await controller.power.permissive()
        await controller.power.set_permissive(True)
        assert await controller.power.permissive()


async def test_a_controller_with_one_state() -> None:
    async with nvme_async.open("emulated:size=16MiB", apst_latency_us=100_000, **FAST) as controller:
        assert controller.inspect()["degraded"] == {}
        assert await controller.power.get() == PowerSetting(0, 0, 25.0, True)
        with pytest.raises(ConfigurationError, match="no autonomous power state transitions"):
            await controller.power.set_latency(100)
        with pytest.raises(ConfigurationError, match="permissive"):
            await controller.power.set_permissive(True)


async def test_a_transition_to_an_operational_state_is_refused() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        table = power_state_transitions([PowerStateTransition(itps=1, itpt=5)])
        with pytest.raises(InvalidField):
            await controller.admin(commands.set_features(Feature.AUTONOMOUS_POWER_STATE_TRANSITION, 1), table)


def test_the_command_line() -> None:
    run = CliRunner()
    shown = run.invoke(cli, ["power", URI, "--state", "1", "--latency", "100000"])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[0].split() == ["state", "most", "idle", "entry", "exit", "after", "to"]
    assert lines[2].split() == ["1", "*", "15", "W", "-", "0", "us", "0", "us", "100", "ms", "3"]
    assert lines[4].split() == [
        "3",
        "(no",
        "I/O)",
        "0.05",
        "W",
        "0.05",
        "W",
        "1000",
        "us",
        "2000",
        "us",
        "2000",
        "ms",
        "4",
    ]
    found = json.loads(run.invoke(cli, ["power", URI, "-o", "json"]).output)
    assert (found["state"], found["autonomous"], len(found["states"])) == (0, False, 5)
    for words, said in ((["--state", "7"], "power state 7, must be 0 to 4"), (["--workload", "1"], "need --state")):
        refused = run.invoke(cli, ["power", URI, *words])
        assert (refused.exit_code, said in refused.output) == (2, True), refused.output
