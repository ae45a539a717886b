"""examples/takeover/ and the code in docs/keepalive.md work as described."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from driver_line import socket_path

from nvme_async.emulator import EmulatedController

ROOT = Path(__file__).parents[2]
CODE = re.findall(r"```python\n(.*?)```", (ROOT / "docs/keepalive.md").read_text(), re.DOTALL)


def test_each_service_continues_where_the_previous_one_stopped(tmp_path: Path) -> None:
    """Four processes, one after another; the controller is enabled only once."""
    with EmulatedController("size=16MiB") as emulator:
        address, offer = socket_path(tmp_path), socket_path(tmp_path)
        emulator.listen(address)
        command = [sys.executable, "-W", "error", ROOT / "examples/takeover/service.py", f"vfio-user:{address}", offer]
        services: list[subprocess.Popen[str]] = []
        began: list[int] = []
        ended: list[int] = []
        try:
            for _ in range(4):
                service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                services.append(service)
                assert service.stdout is not None
                found: dict[str, str] = {}
                while not {"goes on from", "offers itself"} <= found.keys():
                    line = service.stdout.readline()
                    assert line, "it ended"
                    found |= {text: line for text in ("goes on from", "offers itself") if text in line}
                began.append(int(found["goes on from"].split()[-1]))
                if len(services) > 1:
                    before = services[-2]
                    rest, _ = before.communicate(timeout=60)
                    assert before.returncode == 0
                    ended.append(int(rest.split()[-1]))
            counted = emulator.faults.counters()
            assert counted["enables"] == 1
            assert counted["shutdowns"] == 0
        finally:
            for service in services:
                service.send_signal(signal.SIGKILL)
                service.communicate(timeout=60)
        for last, following in zip(ended, began[1:], strict=True):
            assert following in (last, last + 1)
        assert ended[-1] > began[0]


@pytest.mark.parametrize("code", [code for code in CODE if "asyncio.run" in code])
def test_the_programs_of_the_documentation_run_as_printed(code: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    for expected in re.findall(r"# prints (.*)", code):
        assert expected in done.stdout


def test_every_piece_of_code_in_the_documentation_compiles() -> None:
    assert len(CODE) >= 4
    for code in CODE:
        compile(
            "async def _():\n" + "\n".join("    " + line for line in code.splitlines()) + "\n    pass\n",
            "docs/keepalive.md",
            "exec",
        )
