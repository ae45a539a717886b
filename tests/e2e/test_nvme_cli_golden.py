"""Our JSON is nvme-cli 2.13's, on a made-up drive that reports everything (nvme_cli_pages.py); what
nvme-cli printed for it was recorded (record_nvme_cli.py). Its options are ours, too.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from nvme_cli_cases import CASES, DIFFERENT
from nvme_cli_pages import answer

from nvme_async.cli.main import cli
from nvme_async.cli.nvme import target
from nvme_async.errors import command_error
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.identify import IdentifyController, IdentifyNamespace
from nvme_async.spec.registers import WIDE, WITH_MSIX, Cap, Register

RECORDED = Path(__file__).parents[1] / "data" / "nvme-cli-2.13.json"
RECORDING: dict[str, Any] = json.loads(RECORDED.read_text())


async def send(command: Command, buffer: Any = None, **_: Any) -> Completion:
    """The made-up drive's answer."""
    dwords = {name: getattr(command, name) for name in ("cdw10", "cdw11", "cdw12", "cdw13", "cdw14", "cdw15")}
    nbytes = command.data_length or 0
    status, result, data = answer(command.admin, command.opcode, command.nsid, dwords, nbytes)
    if status:
        raise command_error(status, opcode=command.opcode, nsid=command.nsid, admin=command.admin, text="refused")
    return Completion(dw0=result & 0xFFFF_FFFF, dw1=result >> 32, sqid=0, data=data if nbytes else None)


class Transport:
    max_transfer = 4096
    readable = WITH_MSIX

    async def read_property(self, register: Register) -> int:
        dwords = {f"cdw{number}": register if number == 11 else 0 for number in range(10, 16)}
        status, value, _ = answer(True, 0x7F, 4, dwords, 0)
        return value if not status else (1 << (64 if register in WIDE else 32)) - 1


@asynccontextmanager
async def opened(device: str | None) -> AsyncIterator[Any]:
    identify = IdentifyController.decode(answer(True, 6, 0, {"cdw10": 1, "cdw11": 0}, 4096)[2])
    page = IdentifyNamespace.decode(answer(True, 6, 1, {"cdw10": 0, "cdw11": 0}, 4096)[2])
    namespace = SimpleNamespace(nsid=1, identify=page, block_size=page.block_size, blocks=7 * 0x1000, submit=send)
    yield SimpleNamespace(
        uri="made-up",
        identify=identify,
        namespaces={1: namespace},
        admin=send,
        cap=Cap.from_int(await Transport().read_property(Register.CAP)),
        transport=Transport(),
    )


def unsigned(value: Any) -> Any:
    """nvme-cli prints some 32-bit values from 2**31 on as negative numbers."""
    if isinstance(value, dict):
        return {key: unsigned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unsigned(item) for item in value]
    return value & 0xFFFF_FFFF if isinstance(value, int) and value < 0 else value


@pytest.mark.parametrize("line", [line for line in CASES if line not in DIFFERENT])
def test_json_is_nvme_clis(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "opened", opened)
    name, arguments = line.split(" /dev/nvme0 ")
    result = CliRunner().invoke(cli, [*name.split(), "made-up", *arguments.split()])
    assert result.exit_code == 0, f"{result.output} {result.exception!r}"
    ours = json.loads(result.stdout)
    theirs = unsigned(RECORDING["json"][line])
    assert ours == theirs
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)


# One command line of each command, the most talkative; features by one that has a data structure.
SHOWN = {line.split(" /dev/nvme0")[0]: line for line in CASES if "get-feature" not in line or "-f 12 -H" in line}


@pytest.mark.parametrize("line", SHOWN.values())
def test_the_other_formats_show_something(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "opened", opened)
    name, arguments = line.removesuffix(" -o json").split(" /dev/nvme0")
    for more in (["-H"] if "dir-receive" not in name else ["-v"], ["-o", "tabular"]):
        result = CliRunner().invoke(cli, [*name.split(), "made-up", *arguments.split(), *more])
        assert result.exit_code == 0, f"{result.output} {result.exception!r}"
        assert result.stdout.strip()
