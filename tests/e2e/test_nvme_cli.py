"""nvme-cli's sub-commands: what they print and do on emulated controllers, alone and through a
manager's socket; and that nvme-cli itself, if installed, prints the same for the same bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from nvme_bridge import Bridge, build_shim, run_nvme

import nvme_async
from nvme_async.cli.main import cli
from nvme_async.cli.nvme import pages_logs
from nvme_async.cli.nvme.commands import names
from nvme_async.cli.nvme.names import NVME
from nvme_async.errors import CommandError, NvmeError
from nvme_async.manager import Manager
from nvme_async.spec.commands import Command

EVERYTHING = (
    "size=16MiB,capacity=64MiB,self_test=on,sanitize=on,firmware_slots=3,lba_status=on,endurance=on,telemetry=on,"
    "persistent_events=on,security=on,write_cache=on,ana=2,formats=512/4096/512+8"
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A controller that stays between commands: its URI."""
    from nvme_async.emulator import EmulatedController, EmulatorConfig

    path = tmp_path / "c.sock"
    with EmulatedController(EmulatorConfig.parse(EVERYTHING)) as controller:
        controller.listen(path)
        yield f"vfio-user:{path}"


def run(*arguments: str, data: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=data)


def ok(*arguments: str, data: bytes | None = None) -> str:
    result = run(*arguments, data=data)
    assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception!r}"
    return result.output


def put(device: str, lba: int, data: bytes) -> None:
    async def write() -> None:
        async with nvme_async.open(device) as controller:
            await controller.namespaces[1].write(lba, data)

    asyncio.run(write())


def shown(*arguments: str) -> Any:
    return json.loads(ok(*arguments, "-o", "json"))


def test_subcommand_names_are_nvme_clis() -> None:
    assert names() == NVME


READERS = sorted(
    {*pages_logs.PAGES, "list-ns", "list-ctrl", "ns-descs", "nvm-id-ns", "nvm-id-ctrl"}
    - {"changed-alloc-ns-list-log", "zns changed-zone-list"}  # which this controller doesn't have
)


@pytest.mark.parametrize("name", [*READERS, "persistent-event-log"])
def test_every_log_page_prints_in_every_format(name: str, served: str) -> None:
    assert shown(*name.split(), served) is not None
    for output in ("normal", "tabular"):
        assert ok(*name.split(), served, "-o", output).strip()
    assert CliRunner().invoke(cli, [*name.split(), served, "-b"]).exit_code == 0


def test_a_namespace_is_created_attached_and_deleted(served: str) -> None:
    assert "nsid:2" in ok("create-ns", served, "-s", "1000", "-f", "0")
    assert shown("list-ns", served) == {"nsid_list": [{"nsid": 1}]}
    assert shown("list-ns", served, "--all") == {"nsid_list": [{"nsid": 1}, {"nsid": 2}]}
    ok("attach-ns", served, "-n", "2")
    assert shown("list-ns", served) == {"nsid_list": [{"nsid": 1}, {"nsid": 2}]}
    ok("detach-ns", served, "-n", "2")
    assert run("delete-ns", served, "-n", "2").exit_code == 1  # no terminal to ask on
    ok("delete-ns", served, "-n", "2", "--force")
    assert shown("list-ns", served, "--all") == {"nsid_list": [{"nsid": 1}]}


def test_format_and_sanitize_ask_for_confirmation(served: str) -> None:
    put(served, 3, b"x" * 4096)
    refused = run("format", served, "-l", "0")
    assert refused.exit_code == 1
    assert served in refused.output
    assert "--force" in refused.output
    ok("format", served, "-l", "0", "--force")
    assert shown("id-ns", served)["flbas"] == 0
    assert run("sanitize", served, "-a", "start-block-erase").exit_code == 1
    ok("sanitize", served, "-a", "start-block-erase", "--force")
    assert shown("sanitize-log", served)["nvme0"]["sstat"]["status"].startswith("(1)")


def test_firmware_and_self_test(served: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"FW2     " + bytes(100_000))
    assert "reset" not in ok("fw-download", served, "-f", str(image), "--commit", "3", "--slot", "2")
    assert shown("fw-log", served)["nvme0"]["Active Firmware Slot (afi)"] == 2
    assert "action:3 slot:1" in ok("fw-commit", served, "-s", "1", "-a", "3")
    assert "passed" in ok("device-self-test", served, "-s", "1", "--wait")
    assert shown("self-test-log", served)["List of Valid Reports"][0]["Self test code"] == 1


def test_blocks_and_reservations(served: str, tmp_path: Path) -> None:
    put(served, 0, b"a" * 8192)
    ok("copy", served, "--sdlba", "10", "--slbs", "0", "--blocks", "1", "--force")
    same = tmp_path / "same"
    same.write_bytes(b"a" * 8192)
    ok("compare", served, "-s", "10", "-c", "1", "-d", str(same))
    ok("write-zeroes", served, "-s", "10", "-c", "0", "--force")
    assert run("compare", served, "-s", "10", "-c", "1", "-d", str(same)).exit_code == 1
    ok("verify", served, "-s", "0", "-c", "3")
    ok("dsm", served, "-d", "-s", "0,5", "-b", "1,2", "--force")
    ok("write-uncor", served, "-s", "7", "--force")
    (found,) = shown("get-lba-status", served, "-a", "0x10")["LSD entry 0"]
    assert found["DSLBA"] == "0x0000000000000007"
    ok("resv-register", served, "--nrkey", "0xabc")
    assert shown("resv-report", served)["gen"] == 1


def test_raw_commands(served: str) -> None:
    assert "NVMEASYNC000" in ok("admin-passthru", served, "-O", "6", "--cdw10", "1", "-l", "4096", "-r")
    assert "Success" in ok("io-passthru", served, "-O", "2", "-n", "1", "-l", "4096", "-r")
    assert "opcode" in ok("admin-passthru", served, "-O", "6", "--dry-run")
    assert "00000157" in ok("get-feature", served, "-f", "4")
    ok("set-feature", served, "-f", "4", "-V", "350")
    assert shown("get-log", served, "-i", "2", "-l", "512")["data"][:2] == "00"
    assert "TPer" in json.dumps(shown("security-recv", served, "-p", "1", "-s", "1"))
    assert shown("show-regs", served)["vs"] == 0x20000
    assert "20000" in ok("get-property", served, "-O", "8")
    assert run("get-log", served).exit_code == 2


def test_read_and_write_take_the_options_of_one_command(served: str, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"q" * 8192)
    ok("write", served, "-s", "4", "-c", "1", "-z", "8192", "-d", str(source), "--limited-retry")
    said = ok("read", served, "-s", "4", "-c", "1", "-d", str(copy), "-v", "--dsm", "3")
    assert copy.read_bytes() == source.read_bytes()
    assert "Read: opcode=0x02 nsid=0x1 cdw10=0x4" in said
    assert run("read", served, "-d", str(copy), "--ref-tag", "0x100000000").exit_code == 2
    assert run("write", served, "-d", str(source), "-c", "9", "--app-tag", "1").exit_code == 2
    assert "cdw12        : 80000000" in ok("read", served, "-d", str(copy), "--limited-retry", "--dry-run")
    assert copy.read_bytes() == b""


def test_zones_and_placement_are_refused_where_there_are_none(served: str) -> None:
    assert "endurance group" in run("fdp", "configs", served).output
    for command in (("zns", "report-zones"), ("fdp", "stats", "-e", "1"), ("fdp", "status")):
        result = run(*command, served)
        assert result.exit_code == 1, command
        assert result.exception is not None


def test_all_event_types_of_a_placement_handle_are_shown() -> None:
    found = shown("get-feature", "emulated:size=16MiB,fdp=2", "-f", "0x1e", "-n", "1")
    (events,) = found["Feature: 0x1e"]
    assert int(found["feature: 0x1e"][0]["Current"], 16) == len(events) > 1
    assert set(events.values()) <= {"Enabled", "Not enabled"}


def test_the_error_log_has_no_more_entries_than_the_controller(served: str) -> None:
    assert len(shown("error-log", served, "-e", "300")["errors"]) == shown("id-ctrl", served)["elpe"] + 1
    assert len(shown("error-log", served, "-e", "2")["errors"]) == 2


def test_registers_are_written_only_by_force(served: str) -> None:
    assert shown("get-reg", served, "--vs") == {"register: 0x08": [{"name": "version", "value": 0x20000}]}
    assert "NVMe specification" in ok("get-property", served, "-O", "8", "-H")
    refused = run("set-property", served, "-O", "0x48", "-V", "4096")
    assert refused.exit_code == 1
    assert "--force" in refused.output
    assert "value: 0x1000" in ok("set-property", served, "-O", "0x48", "-V", "4096", "--force")
    assert run("get-reg", served, "--intms").exit_code == 2
    assert run("get-property", served, "-O", "0x9").exit_code == 2
    assert "not supported" in run("subsystem-reset", served, "--force").output


def test_timeout_ends_a_command(served: str) -> None:
    assert ok("smart-log", served, "--timeout", "600000")
    late = run("device-self-test", served, "--wait", "--timeout", "1")
    assert late.exit_code == 1
    assert "--timeout 1 ms" in late.output


def test_telemetry_goes_to_a_file(served: str, tmp_path: Path) -> None:
    ok("telemetry-log", served, "-O", str(tmp_path / "t"))
    assert (tmp_path / "t").stat().st_size == 512 * 11


def test_zone_commands() -> None:
    zoned = "emulated:size=16MiB,zoned=on,zone_size=4MiB,zone_capacity=2MiB"
    zones = shown("zns", "report-zones", zoned)
    assert zones["nr_zones"] == 4
    assert zones["zone_list"][1] == {
        "slba": 1024,
        "wp": 1024,
        "cap": 512,
        "state": "EMPTY",
        "type": "SEQWRITE_REQ",
        "attrs": 0,
        "attrs_info": 0,
    }
    assert "LBA 400" in ok("zns", "zone-append", zoned, "-s", "1024", data=b"z" * 4096)
    ok("zns", "open-zone", zoned, "-s", "0")
    assert run("zns", "reset-zone", zoned, "-a").exit_code == 1
    ok("zns", "reset-zone", zoned, "-a", "--force")
    assert shown("zns", "id-ns", zoned)["lbafe"][1]["zsze"] == 1024


def test_a_managers_drive_is_inspected_without_opening_it(tmp_path: Path) -> None:
    """The manager serves on the loops of its own threads; the command line runs here."""
    path = tmp_path / "control.sock"
    uri = f"emulated:{EVERYTHING},serial=ATTACHED{os.getpid()}"

    async def start() -> Manager:
        manager = Manager(control=path)
        await manager.load(uri)
        return manager

    manager = asyncio.run(start())
    try:
        before = manager.device(uri).controller
        assert before is not None
        assert shown("--attach", str(path), "smart-log")["temperature"] == 313
        assert shown("--attach", str(path), "list-ns", uri) == {"nsid_list": [{"nsid": 1}]}
        assert "Success" in ok("--attach", str(path), "io-passthru", "-O", "2", "-n", "1", "-l", "4096", "-r")
        refused = run("--attach", str(path), "format", "-l", "0")
        assert refused.exit_code == 1
        assert "in use" in refused.output
        ok("--attach", str(path), "format", "-l", "0", "--force")
        assert shown("--attach", str(path), "get-lba-status")["Number of LBA Status Descriptors (NLSD)"] == 0
        assert run("--attach", str(path), "smart-log", "pci:nothing").exit_code == 2
        (row,) = shown("--attach", str(path), "list")["Devices"]
        assert (row["NameSpace"], row["DevicePath"], row["PhysicalSize"]) == (1, uri, 16 << 20)
        (tree,) = shown("--attach", str(path), "list", "-v")["Devices"]
        assert tree["Subsystems"][0]["Controllers"][0]["Namespaces"][0]["NSID"] == 1
        (host,) = shown("--attach", str(path), "list-subsys")
        assert host["Subsystems"][0]["Paths"][0]["Name"] == uri
        assert "live" in ok("--attach", str(path), "list-subsys", "-v")
        assert shown("--attach", str(path), "id-ctrl")["sn"].startswith("ATTACHED")
        assert shown("--attach", str(path), "id-ns")["nsze"] == 32768  # of 512 bytes now
        assert shown("--attach", str(path), "show-regs")["vs"] == 0x20000
        assert run("--attach", str(path), "set-property", "-O", "0x48", "-V", "0", "--force").exit_code == 1
        assert run("--attach", str(path), "subsystem-reset", "--force").exit_code == 1
        unknown = run("--attach", str(path), "admin-passthru", "-O", "0xd0")
        assert isinstance(unknown.exception, CommandError)
        driver_s = run("--attach", str(path), "admin-passthru", "-O", "5")
        assert "reserved for the driver" in str(driver_s.exception)
        assert manager.device(uri).controller is before
    finally:
        asyncio.run(manager.close())


# -- nvme-cli itself -------------------------------------------------------------------------------


class OnEmulated(Bridge):
    """Executes nvme-cli's requests to the shim on an emulated controller of this process."""

    def __init__(self, options: str, path: Path) -> None:
        super().__init__(path, self._execute)
        self._options = options

    async def main(self) -> None:
        async with nvme_async.open(f"emulated:{self._options}") as self._controller:
            await self.serve()

    async def _execute(
        self, admin: bool, opcode: int, nsid: int, dwords: dict[str, int], sent: bytes, nbytes: int
    ) -> tuple[int, int, bytes]:
        data = bytearray(sent or nbytes)
        command = Command(opcode=opcode, nsid=nsid, data_length=nbytes, admin=admin, **dwords)
        try:
            to = self._controller.admin if admin else self._controller.namespaces[nsid].submit
            completion = await to(command, data if nbytes else None)
        except CommandError as error:
            return error.status | error.dnr << 14, 0, b""
        except NvmeError:
            return 0x06, 0, b""
        return 0, completion.dw0 | completion.dw1 << 32, bytes(data)


@pytest.fixture(scope="module")
def nvme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """nvme-cli on an emulated controller: nvme("smart-log", …) is what it prints as JSON."""
    tool = os.environ.get("NVME_ASYNC_NVME_CLI") or shutil.which("nvme", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    folder = tmp_path_factory.mktemp("nvme")
    library = build_shim(folder)
    if tool is None or library is None:
        pytest.skip("needs nvme-cli and a C compiler")
    version = subprocess.run([tool, "version"], capture_output=True, text=True, check=True).stdout
    found = re.match(r"nvme version (\d+)\.(\d+)", version)
    assert found is not None, version
    bridge = OnEmulated(f"{EVERYTHING},serial=NVMEASYNC0001", folder / "s")
    bridge.start()
    assert bridge.ready.wait(60)

    def call(name: str, *arguments: str) -> Any:
        result = run_nvme([tool, name, "/dev/nvme0", *arguments, "-o", "json"], library, bridge.path)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    call.old = (int(found[1]), int(found[2])) < (2, 13)  # type: ignore[attr-defined]
    yield call
    bridge.close()


def numbers(value: Any) -> Any:
    """nvme-cli 2.3 writes wide numbers as text; later ones, and we, as numbers."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def common(ours: Any, theirs: Any) -> Any:
    """Of ours what an nvme-cli before 2.13 prints, too: keys were only added since."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return {key: common(value, theirs[key]) for key, value in ours.items() if key in theirs}
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [common(*pair) for pair in zip(ours, theirs, strict=True)]
    return ours


# These have other keys since.
NEWER = ("ns-descs", "effects-log", "id-iocs")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("smart-log", ()),
        ("fw-log", ()),
        ("error-log", ()),
        ("self-test-log", ()),
        ("sanitize-log", ()),
        ("ana-log", ()),
        ("endurance-log", ("-g", "1")),
        ("effects-log", ("-c", "0")),
        ("list-ns", ()),
        ("list-ctrl", ()),
        ("ns-descs", ("-n", "1")),
        ("cmdset-ind-id-ns", ("-n", "1")),
        ("nvm-id-ctrl", ()),
        ("nvm-id-ns", ("-n", "1")),
        ("id-ns", ("-n", "1")),
        ("id-ctrl", ()),
        ("resv-report", ("-n", "1")),
    ],
)
def test_nvme_cli_prints_the_same(name: str, arguments: tuple[str, ...], nvme: Any) -> None:
    if nvme.old and name in NEWER:
        pytest.skip("nvme-cli 2.13 has other keys; NVME_ASYNC_NVME_CLI may name one")
    theirs = numbers(nvme(name, *arguments))
    ours = numbers(shown(name, f"emulated:{EVERYTHING}", *arguments))
    if nvme.old:
        ours, theirs = common(ours, theirs), common(theirs, ours)
        assert ours
    assert ours == theirs
