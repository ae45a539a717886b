"""nvme-async share: the stand-alone owner, --list and --revoke."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import nvme_async
from nvme_async.cli.main import cli
from nvme_async.cli.share import leases_text
from nvme_async.errors import LeaseError
from nvme_async.sharing.places import place_of


async def test_it_serves_lists_revokes_and_ends(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    command = [sys.executable, "-m", "nvme_async", "share", "emulated:size=16MiB", "--socket", path, "--io-queues", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:  # noqa: ASYNC220
        assert owner.stdout is not None
        assert owner.stdout.readline() == f"emulated:size=16MiB: shared at {path}\n"
        async with nvme_async.open(f"shared:{path}") as worker:
            await worker.namespaces[1].write(0, b"x" * 4096)

            def run(*arguments: str) -> str:
                result = CliRunner().invoke(cli, ["share", "--socket", path, *arguments])
                assert result.exit_code == 0, result.output
                return result.output

            text = await asyncio.to_thread(run, "--list")
            assert text.startswith("emulated:size=16MiB: 1 leases\n")
            assert "present" in text
            [lease] = json.loads(await asyncio.to_thread(run, "--list", "-o", "json"))["leases"]
            assert "1 leases" in await asyncio.to_thread(run, "--revoke", str(lease["pid"]))
            with pytest.raises(LeaseError):
                await worker.namespaces[1].read(0)
            result = CliRunner().invoke(cli, ["share", "--socket", path, "--revoke", "1"])
            assert "process 1 has no lease" in result.output
        owner.send_signal(signal.SIGTERM)
        assert owner.wait(20) == 0
    assert not Path(path).exists()


def test_missing_or_invalid_arguments_are_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["share", "--socket", str(tmp_path / "s")])
    assert result.exit_code == 2
    assert "a DEVICE is needed" in result.output
    result = CliRunner().invoke(
        cli, ["share", "emulated:size=16MiB", "--socket", str(tmp_path / "s"), "--queues", "99"]
    )
    assert "queues is 99, must be 1 to 16" in result.output + str(result.exception)


def test_each_of_several_devices_has_its_own_socket() -> None:
    assert place_of("pci:0000:01:00.0", "/run/x", False) == "/run/x"
    assert place_of("pci:0000:01:00.0", "/run/x", True) == "/run/x/pci_0000_01_00.0.sock"
    answer = {"uri": "u", "leases": []}
    assert leases_text(answer) == "u: 0 leases"
