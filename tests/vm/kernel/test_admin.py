"""What the kernel and nvme-cli read from a controller."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from drive import DBBUF, ROLES, WITH_DBBUF, Drive, json_of, sh

Find = Callable[[str], Drive]
EXPECTED = {  # block size, bytes, largest request
    "ram-4k": (4096, 256 << 20, 128 << 10),
    "ram-512": (512, 256 << 20, 1 << 20),
    "file-4k": (4096, 512 << 20, 128 << 10),
    "file-512": (512, 256 << 20, 8 << 10),
    "null": (4096, 1 << 30, 128 << 10),
    "one-queue": (512, 64 << 20, 128 << 10),
    "changing": (4096, 64 << 20, 256 << 10),
}
FEATURE_LOG = 0x12


@pytest.mark.parametrize("role", ROLES)
def test_the_kernel_found_what_the_controller_says(drive: Find, role: str) -> None:
    it = drive(role)
    block, nbytes, largest = EXPECTED[role]
    assert (it.queue("logical_block_size"), it.nbytes()) == (block, nbytes)
    assert it.queue("max_hw_sectors_kb") == largest >> 10
    assert (it.counter("admin", DBBUF) > 0) == (role in WITH_DBBUF)
    assert it.queue("write_zeroes_max_bytes") > 0
    assert it.queue("discard_max_bytes") > 0
    cache = (Path("/sys/block") / it.node().name / "queue/write_cache").read_text().strip()
    assert cache == ("write back" if role.startswith("file") else "write through")


@pytest.mark.parametrize("role", ROLES)
def test_queues(drive: Find, role: str) -> None:
    """Two processors and a polled queue, or all on one."""
    it = drive(role)
    queues = {entry.name for entry in (Path("/sys/block") / it.node().name / "mq").iterdir()}
    assert queues == ({"0"} if role == "one-queue" else {"0", "1", "2"})


@pytest.mark.parametrize("role", ROLES)
def test_identify(drive: Find, role: str) -> None:
    it = drive(role)
    controller = json_of("nvme", "id-ctrl", it.controller)
    assert controller["sn"].strip() == role
    assert controller["ver"] == 0x20000
    assert 4096 << controller["mdts"] == EXPECTED[role][2]
    assert bool(controller["oacs"] & 0x100) == (role in WITH_DBBUF)
    namespace = json_of("nvme", "id-ns", it.node())
    block, nbytes, _ = EXPECTED[role]
    assert namespace["nsze"] == namespace["ncap"] == nbytes // block
    assert 1 << namespace["lbafs"][namespace["flbas"] & 15]["ds"] == block
    described = sh("nvme", "ns-descs", it.node())
    assert namespace["nguid"] in described
    assert namespace["eui64"] in described
    assert "uuid" in described
    listed = json.loads(sh("nvme", "list", "-o", "json"))
    assert role in {entry["SerialNumber"] for entry in listed["Devices"]}
    assert [entry["nsid"] for entry in json_of("nvme", "list-ns", it.controller)["nsid_list"]] == (
        [1, 2] if role == "one-queue" else [1]
    )


@pytest.mark.parametrize("role", ["ram-4k", "file-512"])
def test_logs(drive: Find, role: str) -> None:
    it = drive(role)
    before = json_of("nvme", "smart-log", it.controller)
    sh("dd", f"if={it.node()}", "of=/dev/null", "bs=1M", "count=64", "iflag=direct")
    smart = json_of("nvme", "smart-log", it.controller)
    assert smart["critical_warning"] == 0
    assert 0 < smart["temperature"] - 273 < 60
    # nvme-cli writes long numbers as strings. 64 MiB in thousands of 512 bytes.
    assert int(smart["data_units_read"]) - int(before["data_units_read"]) in (131, 132)
    assert int(smart["host_read_commands"]) > int(before["host_read_commands"])
    assert json_of("nvme", "fw-log", it.controller)
    assert "Get Log Page" in sh("nvme", "effects-log", it.controller, "--csi=0", "-H")
    assert "LID 0x5" in sh("nvme", "supported-log-pages", it.controller)
    sh("nvme", "changed-ns-list-log", it.controller)
    for page in (0x0D, 0x70):  # telemetry, discovery
        assert "Invalid Log Page" in sh("nvme", "get-log", it.controller, "-i", str(page), "-l", "512", check=False)


@pytest.mark.parametrize("role", ["ram-4k", "file-512"])
def test_every_feature_exists_exactly_if_the_log_lists_it(drive: Find, role: str) -> None:
    it = drive(role)
    raw = sh("nvme", "get-log", it.controller, "-i", str(FEATURE_LOG), "-l", "1024")
    data = bytes.fromhex(
        "".join(re.findall(r"^[0-9a-f]{4}: ((?:[0-9a-f]{2} ){1,16})", raw, re.MULTILINE)).replace(" ", "")
    )
    promised = {fid for fid in range(256) if data[4 * fid] & 1}
    assert {1, 2, 4, 5, 7, 8, 9, 0xA, 0xB} <= promised
    found = set()
    for fid in range(1, 256):
        # Some have data, with this length; 0Dh and similar would need an argument, but are not
        # offered.
        said = sh("nvme", "get-feature", it.controller, "-f", str(fid), "-n", "1", check=False)
        if "Current value" in said or "get-feature:" in said:
            found.add(fid)
        else:
            assert "Invalid Field" in said, said
    assert found == promised
    for fid in promised:
        for select in (1, 2, 3):
            sh("nvme", "get-feature", it.controller, "-f", str(fid), "-s", str(select), "-n", "1")


def test_errors_are_logged(drive: Find) -> None:
    it = drive("ram-4k")
    before = json_of("nvme", "error-log", it.controller)["errors"][0]["error_count"]
    beyond = it.nbytes() // 4096
    said = sh("nvme", "read", it.node(), "-s", str(beyond), "-c", "0", "-z", "4096", "-d", "/tmp/out", check=False)
    assert "LBA Out of Range" in said or "LBA_RANGE" in said.upper(), said
    entry = json_of("nvme", "error-log", it.controller)["errors"][0]
    assert entry["error_count"] == before + 1
    assert (entry["lba"], entry["nsid"]) == (beyond, 1)
    assert entry["status_field"] >> 1 & 0x7FF == 0x80 or entry["status_field"] & 0x7FF == 0x80


def test_a_temperature_warning_reaches_the_smart_log(drive: Find) -> None:
    it = drive("ram-512")
    it.ask("temperature", kelvin=360)
    try:
        assert json_of("nvme", "smart-log", it.controller)["critical_warning"] & 2
    finally:
        it.ask("temperature", kelvin=313)
    assert json_of("nvme", "smart-log", it.controller)["critical_warning"] == 0
