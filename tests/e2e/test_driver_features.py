"""Each feature through Get and Set Features: current, default, saved, capabilities; set, saved."""

from __future__ import annotations

import datetime
import uuid

import attrs
import pytest
from click.testing import CliRunner
from driver_line import SET_FEATURES
from driving import FAST, faults

import nvme_async
from nvme_async.cli.main import cli
from nvme_async.errors import CommandError, ConfigurationError
from nvme_async.spec import commands
from nvme_async.spec.features import FeatureCapabilities, Timestamp, TimestampOrigin
from nvme_async.spec.opcodes import Feature, FeatureSelect

URI = "emulated:size=16MiB,namespaces=2,write_cache=on,power_states=5,lba_status=on,save_features=on"
HOST = "5f6ad1c5-9d1c-4a3b-8f25-3d3e8a5b0c11"
HOUR = datetime.timedelta(hours=1)


@attrs.frozen
class Case:
    """cdw11: of Get Features. default, value: what it is, and what it becomes by `value` in cdw11
    of Set Features. saveable: as the capabilities say.
    """

    fid: Feature
    default: int
    value: int
    result: int
    nsid: int = 0
    cdw11: int = 0
    saveable: bool = True


def case(fid: Feature, default: int, value: int, result: int | None = None, **more: int | bool) -> Case:
    return Case(fid, default, value, value if result is None else result, **more)  # type: ignore[arg-type]


CASES = [
    case(Feature.ARBITRATION, 5, 0x04030202),
    case(Feature.POWER_MANAGEMENT, 0, 0x22),
    case(Feature.TEMPERATURE_THRESHOLD, 343, 350),
    case(Feature.TEMPERATURE_THRESHOLD, 0, 1 << 20 | 270, 270, cdw11=1 << 20),
    case(Feature.ERROR_RECOVERY, 0, 7, nsid=1),
    case(Feature.VOLATILE_WRITE_CACHE, 1, 0),
    case(Feature.INTERRUPT_COALESCING, 0, 0x0203),
    case(Feature.INTERRUPT_VECTOR_CONFIGURATION, 2, 0x10002, cdw11=2, saveable=False),
    case(Feature.WRITE_ATOMICITY, 0, 1),
    case(Feature.NON_OPERATIONAL_POWER_STATE, 0, 1),
    case(Feature.LBA_STATUS_INTERVAL, 0, 0x00050004),
]


async def get(controller: nvme_async.Controller, one: Case, select: int, nsid: int | None = None) -> int:
    made = commands.get_features(one.fid, sel=select, nsid=one.nsid if nsid is None else nsid, cdw11=one.cdw11)
    return (await controller.admin(made)).dw0


async def all_values(controller: nvme_async.Controller, one: Case) -> tuple[int, int, int]:
    """Current, default, saved."""
    return (
        await get(controller, one, FeatureSelect.CURRENT),
        await get(controller, one, FeatureSelect.DEFAULT),
        await get(controller, one, FeatureSelect.SAVED),
    )


@pytest.mark.parametrize("one", CASES, ids=lambda one: f"{one.fid.name}-{one.value:#x}")
async def test_a_feature_is_set_and_saved(one: Case) -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        capabilities = FeatureCapabilities.from_int(await get(controller, one, FeatureSelect.CAPABILITIES))
        assert capabilities == FeatureCapabilities(
            saveable=one.saveable, namespace_specific=one.nsid > 0, changeable=True
        )
        assert await all_values(controller, one) == (one.default,) * 3
        await controller.admin(commands.set_features(one.fid, one.value, one.nsid))
        assert await all_values(controller, one) == (one.result, one.default, one.default)
        if one.nsid:
            assert await get(controller, one, FeatureSelect.CURRENT, nsid=2) == one.default
        await controller.reset()
        assert await all_values(controller, one) == (one.default,) * 3
        saving = commands.set_features(one.fid, one.value, one.nsid, save=True)
        if not one.saveable:
            with pytest.raises(CommandError) as caught:
                await controller.admin(saving)
            assert (caught.value.sct, caught.value.sc) == (1, 0x0D)
            assert await all_values(controller, one) == (one.default,) * 3
            return
        await controller.admin(saving)
        assert await all_values(controller, one) == (one.result, one.default, one.result)
        await controller.reset()
        assert await all_values(controller, one) == (one.result, one.default, one.result)
        if one.nsid:
            assert await get(controller, one, FeatureSelect.CURRENT, nsid=2) == one.default


@pytest.mark.parametrize(
    ("fid", "value", "nsid", "status"),
    [
        (Feature.POWER_MANAGEMENT, 5, 0, (0, 0x02)),
        (Feature.TEMPERATURE_THRESHOLD, 3 << 16 | 300, 0, (0, 0x02)),
        (Feature.ERROR_RECOVERY, 1, 9, (0, 0x02)),  # inactive
        (Feature.ERROR_RECOVERY, 1, 99, (0, 0x0B)),  # above NN
        (Feature.ERROR_RECOVERY, 1 << 16, 1, (0, 0x02)),  # DULBE isn't offered
        (Feature.WRITE_ATOMICITY, 1, 1, (1, 0x0F)),  # not namespace specific
        (Feature.INTERRUPT_VECTOR_CONFIGURATION, 200, 0, (0, 0x02)),
        (0x70, 1, 0, (0, 0x02)),
    ],
)
async def test_values_that_are_refused(fid: int, value: int, nsid: int, status: tuple[int, int]) -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        with pytest.raises(CommandError) as caught:
            await controller.admin(commands.set_features(fid, value, nsid))
        assert (caught.value.sct, caught.value.sc) == status


async def timestamp(controller: nvme_async.Controller) -> Timestamp:
    return Timestamp.decode((await controller.admin(commands.get_features(Feature.TIMESTAMP))).data or b"")


async def test_the_controller_knows_the_time_after_bring_up_and_reset() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        for _ in range(2):
            known = await timestamp(controller)
            assert known.origin is TimestampOrigin.SET_FEATURES
            assert abs(known.time - datetime.datetime.now(datetime.UTC)) < HOUR
            await controller.reset()


async def test_a_refused_timestamp_is_no_failure() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        faults(controller).add(queue="admin", opcode=SET_FEATURES, cdw10=Feature.TIMESTAMP, fail=2, dnr=True)
        await controller.reset()
        assert list(controller.inspect()["degraded"]) == ["Timestamp"]
        assert (await timestamp(controller)).origin is TimestampOrigin.CONTROLLER_RESET


async def test_a_host_identifier_is_set_again_at_a_reset() -> None:
    async with nvme_async.open(URI, hostid=HOST, **FAST) as controller:
        made = commands.get_features(Feature.HOST_IDENTIFIER, cdw11=1)
        for _ in range(2):
            answer = await controller.admin(made)
            assert (answer.dw0, answer.data) == (1, uuid.UUID(HOST).bytes)
            await controller.reset()
        faults(controller).add(queue="admin", opcode=SET_FEATURES, cdw10=Feature.HOST_IDENTIFIER, fail=2, dnr=True)
        await controller.reset()
        assert list(controller.inspect()["degraded"]) == ["Host Identifier"]
        assert (await controller.admin(made)).data == bytes(16)
    for wrong, said in (("x", "hostid is 'x', must be a UUID"), ("0" * 32, "all zeroes")):
        with pytest.raises(ConfigurationError, match=said):
            await nvme_async.open(URI, hostid=wrong)


def test_the_command_line() -> None:
    run = CliRunner()
    uri = URI.replace("save_features=on", "save_features=off")
    for words, code, said in (
        (["set-feature", URI, "-f", "6", "-V", "0", "--save"], 0, "save:0x1"),
        (["set-feature", uri, "-f", "6", "-V", "0", "--save"], 1, "Not Saveable"),
        (["get-feature", URI, "-f", "6", "-s", "3", "-H"], 0, "saveable"),
        (["get-feature", URI, "-f", "4", "-s", "2"], 0, "0x00000157"),
        (["get-feature", URI, "-f", "5", "-n", "2"], 0, "0x00000000"),
    ):
        shown = run.invoke(cli, words)
        assert (shown.exit_code, said in f"{shown.output}{shown.exception}") == (code, True), shown.output
