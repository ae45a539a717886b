"""nvme-async selftest: a drive that passes, drives that don't, and drives that are left alone."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from nvme_async.cli import selftest_checks
from nvme_async.cli.main import cli
from nvme_async.cli.selftest import free_function
from nvme_async.cli.selftest_checks import Selftest
from nvme_async.emulator import EmulatedController, EmulatorConfig
from nvme_async.errors import DeviceError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from fake_pci import FakeSystem

DRIVE = "0000:00:05.0"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest_checks, "READ_COUNT", 20)


@pytest.fixture
async def drive(tmp_path: Path) -> AsyncIterator[tuple[EmulatedController, str]]:
    controller = EmulatedController(EmulatorConfig.parse("size=4MiB,block=512"))
    controller.listen(tmp_path / "drive.sock")
    yield controller, f"vfio-user:{tmp_path}/drive.sock"
    controller.close()


def states(test: Selftest) -> dict[str, str]:
    return {check.name: check.state for check in test.checks}


def test_a_drive_that_passes() -> None:
    done = CliRunner().invoke(cli, ["selftest", "emulated:size=4MiB,block=512", "--write-to", "8-0x1f", "-o", "json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["passed"] is True
    assert report["about"]["namespaces"] == "1: 8192 x 512 B"
    skipped = [check["name"] for check in report["checks"] if check["state"] != "ok"]
    assert skipped == ["identify"]


async def test_the_data_are_left_as_they_were(drive: tuple[EmulatedController, str]) -> None:
    import nvme_async

    _, uri = drive
    before = bytes(range(256)) * 32
    async with nvme_async.open(uri) as controller:
        await controller.namespaces[1].write(10, before)
    test = Selftest(uri, 60.0, write_to=(10, 25))
    await test.run()
    assert not test.failed, test.checks
    async with nvme_async.open(uri) as controller:
        assert await controller.namespaces[1].read(10, 16) == before
    readonly = Selftest(uri, 60.0)
    await readonly.run()
    assert states(readonly)["write and read back"] == "skipped"


async def test_nothing_is_written_unless_asked(drive: tuple[EmulatedController, str]) -> None:
    emulated, uri = drive
    writes = [emulated.faults.add(queue="io", opcode=opcode, delay=0.0) for opcode in (1, 4, 8, 9, 0x19)]
    await Selftest(uri, 60.0).run()
    assert [rule.hits for rule in writes] == [0] * 5


async def test_a_drive_that_reads_badly(drive: tuple[EmulatedController, str]) -> None:
    emulated, uri = drive
    emulated.faults.add(queue="io", opcode=2, count=1, fail=0x281)
    test = Selftest(uri, 60.0)
    await test.run()
    found = states(test)
    assert found.pop("read, 1 x 4 KiB") == "failed"
    assert "failed" not in found.values()  # and the other steps went on
    assert "UnrecoveredReadError" in next(check.detail for check in test.checks if check.state == "failed")


async def test_a_drive_that_does_not_keep_what_is_written(drive: tuple[EmulatedController, str]) -> None:
    emulated, uri = drive
    emulated.faults.add(queue="io", opcode=1, count=1, drop=False, payload=b"\xff" * 16)
    test = Selftest(uri, 60.0, write_to=(0, 7))
    await test.run()
    (failed,) = (check for check in test.checks if check.state == "failed")
    assert failed.detail.startswith("Wrong: block 0 does not read back as written")


async def test_a_drive_that_hangs_ends_within_the_limit(drive: tuple[EmulatedController, str]) -> None:
    emulated, uri = drive
    emulated.faults.add(queue="io", opcode=2, discard=True, count=1)
    test = Selftest(uri, 1.0)
    await test.run()
    assert states(test)["read, 1 x 4 KiB"] == "failed"
    assert "not done within 1 s" in next(check.detail for check in test.checks if check.state == "failed")


async def test_no_drive(tmp_path: Path) -> None:
    test = Selftest(f"vfio-user:{tmp_path}/none.sock", 5.0)
    await test.run()
    assert states(test)["bring-up"] == "failed"
    assert set(states(test).values()) == {"failed", "skipped"}


def test_a_drive_in_use_is_left_alone(tmp_path: Path) -> None:
    system = FakeSystem(tmp_path)
    system.add_function(DRIVE, 5)
    system.add_disk(system.add_controller(DRIVE, "nvme0"), "nvme0n1", "259:0")
    with pytest.raises(DeviceError, match=r"bound to nvme; run nvme-async bind pci:0000:00:05\.0 first"):
        free_function(system, f"pci:{DRIVE}")
    system.mount("259:0", "/data", "/dev/nvme0n1")
    done = CliRunner().invoke(cli, ["selftest", f"pci:{DRIVE}"], obj=system)
    assert isinstance(done.exception, DeviceError)
    assert "in use, so it was not tested: /dev/nvme0n1 is mounted at /data" in str(done.exception)


@pytest.mark.parametrize("text", ["5", "9-3", "a-b", "-3"])
def test_invalid_ranges_are_refused(text: str) -> None:
    done = CliRunner().invoke(cli, ["selftest", "emulated:size=4MiB", f"--write-to={text}"])
    assert done.exit_code == 2
    assert "is not a range of blocks" in done.output
