"""nvme-async keeper, and the keepalive options of the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from nvme_async.cli.main import cli
from nvme_async.errors import KeeperError
from nvme_async.keepalive import config
from nvme_async.keepalive.keeper.client import KeeperClient

URI = "vfio-user:/run/c.sock"


def test_serve_status_and_drop(tmp_path: Path) -> None:
    path = str(tmp_path / "k.sock")
    process = subprocess.Popen([sys.executable, "-m", "nvme_async.cli.main", "keeper", "--socket", path, "--quiet"])
    try:
        limit = time.monotonic() + 60
        while not os.path.exists(path):
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.01)
        run = CliRunner().invoke
        assert run(cli, ["keeper", "--socket", path, "--status"]).output == "nothing held\n"
        with KeeperClient(path) as client:
            fd = os.memfd_create("pool")
            client.put(URI, {"pool": fd})
            os.close(fd)
            shown = run(cli, ["keeper", "--socket", path, "--status"]).output
            assert f"{URI}: its driver, process {os.getpid()}, is alive" in shown
            assert "1 descriptors, 1 deposits, 0 successors" in shown
            refused = run(cli, ["keeper", "--socket", path, "--drop", URI])
            assert isinstance(refused.exception, KeeperError)
            client.release(URI)
        [deposit] = json.loads(run(cli, ["keeper", "--socket", path, "--status", "-o", "json"]).output)
        assert (deposit["name"], deposit["state"], deposit["pid"], deposit["fds"]) == (URI, "orphaned", None, 1)
        assert "waits for a successor" in run(cli, ["keeper", "--socket", path, "--status"]).output
        assert run(cli, ["keeper", "--socket", path, "--drop", URI, "--status"]).output == "nothing held\n"
        assert run(cli, ["keeper", "--socket", path, "--drop", URI]).exit_code == 1
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_missing_keeper_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["keeper", "--socket", str(tmp_path / "none"), "--status"])
    assert isinstance(result.exception, KeeperError)


@pytest.fixture
def _command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "command_line", config.CommandLine())


@pytest.mark.usefixtures("_command_line")
def test_options() -> None:
    arguments = [
        "--keep-alive",
        "Host,PrivatePool",
        "--pool-pages",
        "512",
        "--no-vfio",
        "--keeper",
        "/run/k.sock",
        "list",
        "--help",
    ]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    assert config.command_line == config.CommandLine(
        config.Setting(host=True, private_pool=True), 512, False, "/run/k.sock"
    )
    decision = config.decide(environ={})
    assert (decision.enabled, decision.pool_pages, decision.vfio) == (True, 512, False)
    more = ["--pool-pages", "release", "--pool-numa", "split", "--always-flr", "--disable-keep-alive", "--fused"]
    assert CliRunner().invoke(cli, [*more, "keeper", "list", "--help"]).exit_code == 0
    decision = config.decide(environ={config.DISABLE: "0", config.ALWAYS_FLR: "0"}, keepalive=True)
    assert (decision.enabled, decision.pool_numa, decision.always_flr) == (False, "split", True)
    assert decision.pool_how.startswith("release: ")
    assert (decision.fused, decision.fused_source) == (True, "command line")
    assert CliRunner().invoke(cli, ["--no-fused", "keeper", "list", "--help"]).exit_code == 0
    assert config.decide(environ={}).fused is False


@pytest.mark.usefixtures("_command_line")
@pytest.mark.parametrize(
    "arguments", [["--keep-alive", "maybe"], ["--pool-pages", "-3"], ["--pool-pages", "many"], ["--pool-numa", "x"]]
)
def test_invalid_options_are_refused(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, [*arguments, "list"])
    assert result.exit_code == 2
    assert repr(arguments[1]) in result.output
