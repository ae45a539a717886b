"""Inspecting a manager: plain data, the control socket, the command line, Prometheus's text."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import stat
import struct
import sys
import termios
import time
from pathlib import Path

import pytest
from managed import became, descriptors, emulator, eventually, uri
from prometheus_client.parser import text_string_to_metric_families

from nvme_async.cli.main import main
from nvme_async.errors import ConfigurationError, ControllerGone
from nvme_async.manager import Manager
from nvme_async.manager.control import ControlClient


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """The command line in this process: its exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["nvme-async", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


async def test_inspect_returns_everything_as_plain_data() -> None:
    address = uri("size=16MiB,namespaces=2")
    async with Manager() as manager:
        namespace = await manager.namespace(address, 2)
        await asyncio.gather(*(namespace.write(at, bytes(4096)) for at in range(50)))
        rule = emulator(manager, address).faults.add(queue="io", opcode=2, delay=30.0)
        slow = asyncio.ensure_future(namespace.read(77))
        await asyncio.to_thread(rule.wait, 1)
        state = json.loads(json.dumps(await manager.inspect_with_registers()))
        assert state["pid"] == os.getpid()
        device = state["devices"][address]
        assert (device["state"], device["failure"], device["mailbox"]) == (
            "ready",
            None,
            {"running": None, "waiting": []},
        )
        assert device["worker"] in [worker["name"] for worker in state["workers"]]
        registers = device["registers"]
        assert int(registers["CSTS"], 16) == 1
        assert int(registers["CC"], 16) & 1
        controller = device["controller"]
        assert [entry["nsid"] for entry in controller["namespaces"]] == [1, 2]
        ours = controller["io_queues"][-1]
        assert ours["cq"]["reaped"] == 50
        assert ours["sq"]["submitted"] == 51
        assert [(command["name"], command["lba"]) for command in ours["pending"]] == [("Read", 77)]
        owners = {slot["owner"] for slot in controller["memory"]["pools"][0]["slots"]}
        assert {"queue 0", "queue 1", "queue 2"} <= owners
        emulator(manager, address).faults.release()
        await slow


async def test_inspect_does_not_wait_for_a_hanging_device() -> None:
    address = uri()
    async with Manager(close_limit=0.3) as manager:
        await manager.load(address)
        emulator(manager, address).faults.add(queue="admin", delay=60.0)
        servicing = asyncio.ensure_future(manager.service(address))
        await became(manager.device(address), "servicing")
        began = time.monotonic()
        assert manager.inspect()["devices"][address]["mailbox"]["running"]["operation"] == "service"
        state = await manager.inspect_with_registers(timeout=0.2)
        assert isinstance(state["devices"][address]["registers"], str)
        assert time.monotonic() - began < 20.0
        await asyncio.wait([servicing])
        servicing.exception()


async def test_the_control_socket(tmp_path: Path) -> None:
    path = tmp_path / "manager.sock"
    before = descriptors()
    async with Manager(control=path) as manager:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        address = uri()
        namespace = await manager.namespace(address, 1)

        def talk() -> None:
            with ControlClient(path) as client, ControlClient(path) as other:
                assert client.call("inspect")["devices"][address]["state"] == "ready"
                client.call("reset", uri=address)
                other.call("service", uri=address)
                assert other.call("inspect", registers=True)["devices"][address]["registers"]["CSTS"] == "0x1"
                client.call("switch_keepalive", setting="enabled")
                assert client.call("inspect")["devices"][address]["keepalive"]["decision"]["enabled"] is True
                client.call("switch_keepalive", setting=False, uri=address)
                assert client.call("inspect")["devices"][address]["keepalive"]["decision"]["enabled"] is False
                for wrong in ({"setting": "perhaps"}, {"setting": 7}, {"setting": True, "uri": "emulated:size=1MiB"}):
                    with pytest.raises(RuntimeError):
                        client.call("switch_keepalive", **wrong)
                with pytest.raises(RuntimeError, match="unknown operation 'format'; the operations are inspect"):
                    client.call("format", uri=address)
                with pytest.raises(RuntimeError, match='needs the device\'s "uri"'):
                    client.call("reset")
                client._socket.sendall(b"[1]\n{\n")
                assert b"object" in client._file.readline()
                assert b"JSONDecodeError" in client._file.readline()
                client.call("unload", uri=address)
                client.call("load", uri=address)

        await asyncio.to_thread(talk)
        assert manager.device(address).servicings == 0  # the device that was loaded again
        with pytest.raises(ConfigurationError, match="in use"):
            Manager(control=path)
        assert namespace.uri == address
        client = await asyncio.to_thread(ControlClient, path)
    with pytest.raises(ControllerGone):
        await asyncio.to_thread(client.call, "inspect")
    client.close()
    assert not path.exists()
    with pytest.raises(ControllerGone, match="no manager"):
        ControlClient(path)
    assert descriptors() == before


async def test_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manager.sock"
    address = uri("size=16MiB,model=a [red]model[/red]")
    async with Manager(control=path, latency=True) as manager:
        namespace = await manager.namespace(address, 1)
        stop = False

        async def work() -> None:
            while not stop:
                await namespace.read(0)
                await asyncio.sleep(0)

        working = asyncio.ensure_future(work())

        async def cli(*arguments: str) -> tuple[int, str, str]:
            return await asyncio.to_thread(run, capsys, monkeypatch, *arguments)

        code, out, _ = await cli("inspect", str(path), "--registers")
        assert code == 0
        expected = (
            f"manager, pid {os.getpid()}",
            address,
            "ready on nvme-worker-",
            "a [red]model[/red]",
            "namespace 1: 16 MiB",
            "pool pool0:",
        )
        assert [text for text in expected if text not in out] == []
        assert "registers CAP 0x" in out
        code, out, _ = await cli("inspect", str(path), "-o", "json")
        assert json.loads(out)["devices"][address]["state"] == "ready"
        code, out, _ = await cli("inspect", str(path), "-o", "prometheus")
        assert code == 0
        metrics = {family.name: family for family in text_string_to_metric_families(out)}
        states = {sample.labels["state"]: sample.value for sample in metrics["nvme_async_device_state"].samples}
        assert states == {"ready": 1, "loading": 0, "servicing": 0, "failed": 0, "gone": 0, "closed": 0}
        commands = metrics["nvme_async_commands"].samples[0].value
        latency = metrics["nvme_async_latency_seconds"].samples
        buckets = [sample.value for sample in latency if sample.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        count = next(sample.value for sample in latency if sample.name.endswith("_count"))
        assert 0 < commands <= count <= commands * 2 + 100
        code, out, _ = await cli("top", str(path), "--interval", "0.1", "--count", "2")
        assert code == 0
        lines = [line for line in out.splitlines() if "a [red]model[/red]" in line]
        assert len(lines) == 2
        assert int(lines[1].split()[lines[1].split().index("ready") + 1].replace(",", "")) > 10
        stop = True
        await working
        code, _, err = await cli("top", address)
        assert (code, err.count("\n")) == (2, 1)
    code, _, err = await asyncio.to_thread(run, capsys, monkeypatch, "inspect", str(path))
    assert code == 1
    assert "no manager listens" in err


def test_inspecting_one_device_without_a_manager(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, monkeypatch, "inspect", "emulated:size=4MiB", "-o", "json", "--registers")
    assert code == 0
    device = json.loads(out)["devices"]["emulated:size=4MiB"]
    assert device["registers"]["VS"] == "0x20000"
    assert device["controller"]["namespaces"][0]["nbytes"] == 4 << 20
    queue = device["controller"]["admin_queue"]
    assert (
        queue["doorbells_per_command"]
        == round((queue["sq"]["doorbells"] + queue["cq"]["doorbells"]) / queue["sq"]["submitted"], 3)
        > 0
    )
    code, out, _ = run(capsys, monkeypatch, "inspect", "emulated:size=4MiB", "emulated:size=8MiB", "-o", "json")
    devices = json.loads(out)["devices"]
    assert [devices[uri]["controller"]["namespaces"][0]["nbytes"] for uri in sorted(devices)] == [4 << 20, 8 << 20]
    code, out, err = run(capsys, monkeypatch, "inspect", "emulated:size=4MiB", "/run/manager.sock")
    assert (code, out) == (2, "")
    code, out, err = run(capsys, monkeypatch, "inspect", "pci:0000:ff:1f.7")
    assert (code, out) == (1, "")
    assert err.startswith("nvme-async: ")


async def test_metrics_of_errors_and_repairs() -> None:
    address = uri()
    async with Manager() as manager:
        namespace = await manager.namespace(address, 1)
        emulator(manager, address).faults.add(queue="io", opcode=2, fail=0x281, count=2)
        for _ in range(2):
            with pytest.raises(OSError, match="Unrecovered"):
                await namespace.read(0)
        await manager.service(address)
        await eventually(lambda: manager.device(address).state == "ready")
        text = manager.metrics().decode()
        assert f'nvme_async_servicings_total{{uri="{address}"}} 1.0' in text
        assert f'nvme_async_device_state{{state="ready",uri="{address}"}} 1.0' in text


async def test_q_ends_top_and_restores_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with Manager(control=path) as manager:
        await manager.load("emulated:size=16MiB")
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        before = termios.tcgetattr(theirs)
        command = [sys.executable, "-m", "nvme_async", "top", str(path), "--interval", "0.2"]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
        )
        text = b""
        while b"emulated:size=16MiB" not in text:
            text += await asyncio.wait_for(asyncio.to_thread(os.read, ours, 65536), 60)
        os.write(ours, b"q")
        assert await asyncio.wait_for(process.wait(), 60) == 0
        assert termios.tcgetattr(theirs) == before
        os.close(theirs)
        os.close(ours)
