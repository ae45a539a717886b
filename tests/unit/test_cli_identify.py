"""id-ctrl and id-ns with a fake driver."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from spec_samples import QEMU_CONTROLLER_JSON, QEMU_NAMESPACE_JSON, qemu_controller, qemu_namespace

import nvme_async
from nvme_async.cli.main import cli
from nvme_async.spec.commands import Command
from nvme_async.spec.identify import IdentifyController, IdentifyNamespace
from nvme_async.spec.opcodes import Cns


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URIs that were opened; each shows QEMU's controller with namespaces 2 and 5."""
    uris: list[str] = []

    @asynccontextmanager
    async def opening(uri: str) -> AsyncIterator[SimpleNamespace]:
        uris.append(uri)
        namespace = SimpleNamespace(identify=IdentifyNamespace.decode(qemu_namespace()))

        async def admin(command: Command) -> SimpleNamespace:
            page = qemu_controller() if command.cdw10 == Cns.CONTROLLER else qemu_namespace()
            return SimpleNamespace(data=page)

        yield SimpleNamespace(
            uri=uri,
            identify=IdentifyController.decode(qemu_controller()),
            namespaces={5: namespace, 2: namespace},
            admin=admin,
        )

    monkeypatch.setattr(nvme_async, "open", opening, raising=False)
    return uris


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_id_ctrl(opened: list[str]) -> None:
    result = run("id-ctrl", "emulated:size=1GiB")
    assert result.exit_code == 0, result.output
    assert opened == ["emulated:size=1GiB"]
    lines = result.output.splitlines()
    assert lines[0] == "NVME Identify Controller:"
    for line in (
        "vid       : 0x1b36",
        "sn        : deadbeef",
        "ieee      : 525400",
        "mdts      : 7",
        "rtd3r     : 0",
        "oncs      : 0x15d",
        "fguid     : 00000000-0000-0000-0000-000000000000",
        "subnqn    : nqn.2019-08.org.qemu:deadbeef",
        "ps      0 : mp:25.00W operational enlat:16 exlat:4 rrt:0 rrl:0",
    ):
        assert line in lines


def test_id_ctrl_as_json(opened: list[str]) -> None:
    result = run("id-ctrl", "-o", "json", "pci:0000:01:00.0")
    assert json.loads(result.output) == QEMU_CONTROLLER_JSON


def test_id_ns_takes_the_first_namespace(opened: list[str]) -> None:
    result = run("id-ns", "emulated:")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "NVME Identify Namespace 2:"
    for line in (
        "nsze    : 0x200000",
        "npdg    : 7",
        "eui64   : 525400fffe000001",
        "lbaf  0 : ms:0   lbads:9  rp:0 (in use)",
        "lbaf  7 : ms:64  lbads:12 rp:0",
    ):
        assert line in lines


def test_id_ns_as_json(opened: list[str]) -> None:
    result = run("id-ns", "emulated:", "-n", "5", "-o", "json")
    assert json.loads(result.output) == QEMU_NAMESPACE_JSON


def test_a_missing_namespace_is_named(opened: list[str]) -> None:
    result = run("id-ns", "emulated:", "-n", "3")
    assert result.exit_code == 1
    assert "no active namespace 3 on emulated:; active: [2, 5]" in result.output


def test_device_text_cannot_control_the_terminal(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page = bytearray(qemu_controller())
    page[4:8] = b"\x1b[2J"
    monkeypatch.setitem(globals(), "qemu_controller", lambda: bytes(page))
    result = run("id-ctrl", "emulated:")
    assert "\x1b" not in result.output
    assert "sn        : ?[2Jbeef" in result.output
