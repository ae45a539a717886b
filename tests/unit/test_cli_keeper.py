"""nvme-async keeper, and the keepalive options of the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
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
def decided(monkeypatch: pytest.MonkeyPatch) -> Callable[..., config.Decision]:
    """What config.decide() answers within a command that has these options before its name."""
    decisions: list[config.Decision] = []

    @click.pass_obj
    def probe(decide: Callable[[], config.Decision]) -> None:
        decisions.append(decide())

    monkeypatch.setattr(cli, "get_command", lambda ctx, name: click.command()(probe))

    def run(*arguments: str, **more: Any) -> config.Decision:
        more = {"environ": {}} | more
        result = CliRunner().invoke(cli, [*arguments, "probe"], obj=lambda: config.decide(**more))
        assert result.exit_code == 0, result.output
        return decisions.pop()

    return run


def test_options(decided: Callable[..., config.Decision]) -> None:
    options = ["--keep-alive", "Host,PrivatePool", "--pool-pages", "512", "--no-vfio"]
    decision = decided(*options)
    assert (decision.enabled, decision.pool_pages, decision.vfio) == (True, 512, False)
    options = ["--pool-pages", "release", "--pool-numa", "split", "--always-flr", "--disable-keep-alive", "--fused"]
    decision = decided(*options, environ={config.DISABLE: "0", config.ALWAYS_FLR: "0"}, keepalive=True)
    assert (decision.enabled, decision.pool_numa, decision.always_flr) == (False, "split", True)
    assert decision.pool_how.startswith("release: ")
    assert (decision.fused, decision.fused_source) == (True, "command line")
    assert decided("--no-fused").fused is False


def test_the_options_end_with_the_command(decided: Callable[..., config.Decision]) -> None:
    before = config.decide(environ={})
    decided("--keep-alive", "enabled", "--pool-pages", "512", "--no-vfio", "--always-flr", "--fused")
    assert config.decide(environ={}) == before
    assert CliRunner().invoke(cli, ["--keeper", "/run/k.sock", "list", "--help"]).exit_code == 0
    assert config.command_line == config.CommandLine()


@pytest.mark.parametrize(
    "arguments", [["--keep-alive", "maybe"], ["--pool-pages", "-3"], ["--pool-pages", "many"], ["--pool-numa", "x"]]
)
def test_invalid_options_are_refused(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, [*arguments, "list"])
    assert result.exit_code == 2
    assert repr(arguments[1]) in result.output
