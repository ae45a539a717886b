"""--attach to an owner whose devices are no PCI functions: NVMe/TCP, over two paths too, a file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import nvme_async
from nvme_async.cli.main import cli
from nvme_async.cli.nvme.target import RemoteController
from nvme_async.emulator import EmulatedController
from nvme_async.emulator.tcp import TcpConfig
from nvme_async.manager import Manager, control

NQN = "nqn.2024-01.io.example:attach"
PROPERTIES = {"cap", "vs", "cc", "csts", "crto"}


class Attached:
    """An owner with these devices, and the command line attached to it."""

    def __init__(self, folder: Path, uris: dict[str, str]) -> None:
        self.uris = uris
        self.socket = str(folder / "control")

    def run(self, device: str, line: str) -> Result:
        return CliRunner().invoke(cli, ["--attach", self.socket, *line.split(), self.uris[device]])

    def shows(self, device: str, line: str) -> Any:
        done = self.run(device, f"{line} -o json")
        assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"
        return json.loads(done.stdout)


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[Attached]:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    with EmulatedController("size=4MiB") as target:
        everywhere = (("127.0.0.1", 0), ("127.0.0.1", 0))
        ports = [port for _, port in target.serve_tcp(*everywhere, config=TcpConfig(nqn=NQN))]
        paths = ",".join(f"127.0.0.1:{port}" for port in ports)
        made = Attached(
            tmp_path,
            {"tcp": f"tcp:127.0.0.1:{ports[0]}/{NQN}", "paths": f"tcp:{paths}/{NQN}", "file": f"file:{tmp_path}/disk"},
        )

        async def load() -> Manager:
            manager = Manager(control=made.socket)
            await asyncio.gather(*(manager.load(uri) for uri in made.uris.values()))
            return manager

        manager = asyncio.run(load())
        try:
            yield made
            assert {device.state for device in manager.devices.values()} == {"ready"}
        finally:
            asyncio.run(manager.close())


@pytest.mark.parametrize("device", ["tcp", "paths"])
def test_properties_are_shown_over_a_fabric(attached: Attached, device: str) -> None:
    shown = attached.shows(device, "show-regs")
    assert set(shown) == PROPERTIES
    assert shown["vs"] == 0x20000
    assert shown["csts"] & 1
    assert int(attached.shows(device, "get-property -O 0")["value"], 16) == shown["cap"]
    assert attached.shows(device, "get-reg --csts")["register: 0x1c"] == [{"name": "csts", "value": shown["csts"]}]
    refused = attached.run(device, "get-property -O 0x24")
    assert refused.exit_code == 1
    assert "has no property AQA" in str(refused.exception) + refused.output


def test_the_same_without_an_owner() -> None:
    with EmulatedController("size=4MiB") as target:
        port = target.serve_tcp(("127.0.0.1", 0), config=TcpConfig(nqn=NQN))[0][1]
        done = CliRunner().invoke(cli, ["show-regs", f"tcp:127.0.0.1:{port}/{NQN}", "-o", "json"])
        assert set(json.loads(done.stdout)) == PROPERTIES


def test_a_file_has_no_registers_and_one_sentence_says_so(attached: Attached) -> None:
    done = attached.run("file", "show-regs")
    assert done.exit_code == 1
    assert "has no registers that can be read" in str(done.exception) + done.output


@pytest.mark.parametrize("device", ["tcp", "paths"])
@pytest.mark.parametrize("line", ["effects-log", "effects-log -c 0", "id-ctrl", "list-ns", "id-ns -n 1", "smart-log"])
def test_pages_are_those_that_a_controller_of_ones_own_shows(attached: Attached, device: str, line: str) -> None:
    alone = CliRunner().invoke(cli, [*line.split(), attached.uris[device], "-o", "json"])
    assert alone.exit_code == 0, alone.output
    here, there = json.loads(alone.stdout), attached.shows(device, line)
    for one in (here, there):
        if isinstance(one, dict):
            one.pop("cntlid", None)  # each association has a controller of its own
    assert here == there


@pytest.mark.parametrize("device", ["tcp", "paths", "file"])
def test_commands_go_through_the_owner(attached: Attached, device: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"attached" * 512)
    assert attached.run(device, f"write -n 1 -s 1 -c 0 -z 4096 -d {data} --force").exit_code == 0
    assert attached.run(device, f"compare -n 1 -s 1 -c 0 -z 4096 -d {data}").exit_code == 0
    for line in ("flush -n 1", "reset", "ns-rescan", "list-subsys"):
        done = attached.run(device, line)
        assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"


def test_an_owner_of_an_older_release_has_pci_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(call: Callable[..., Any]) -> RemoteController:
        client = type("Client", (), {"call": staticmethod(call)})()
        remote = RemoteController(client, "pci:0000:01:00.0")  # type: ignore[arg-type]
        await remote.describe_registers()
        return remote

    def older(operation: str, **request: Any) -> Any:
        if operation == "register":
            return {"value": 1 << 37}
        raise RuntimeError(f"ConfigurationError: unknown operation '{operation}'; the operations are inspect")

    remote = asyncio.run(run(older))
    assert nvme_async.spec.registers.Register.AQA in remote.readable
    assert remote.cap.css & 1

    def broken(operation: str, **request: Any) -> Any:
        raise RuntimeError("ControllerGone: it is gone")

    with pytest.raises(RuntimeError, match="gone"):
        asyncio.run(run(broken))


def test_operations_are_named(tmp_path: Path) -> None:
    async def run() -> None:
        async with Manager(control=tmp_path / "c"):
            with control.ControlClient(str(tmp_path / "c")) as client, pytest.raises(RuntimeError, match="registers"):
                await asyncio.to_thread(client.call, "nonsense")

    asyncio.run(run())
