"""nvme-cli's values over our NVMe/TCP target are those of the same controller as a PCI function."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lab import NVME, words_of
from nvmet import prepare, sh

from nvme_async.cli.main import cli
from nvme_async.manager import Manager

NQN = "nqn.2024-01.io.example:values"
PORT = 4422
LINES = (
    *("id-ctrl", "id-ns -n 1", "list-ns", "list-ctrl", "list-ctrl -n 1", "nvm-id-ctrl", "nvm-id-ns -n 1", "id-iocs"),
    *("ns-descs -n 1", "cmdset-ind-id-ns -n 1", "smart-log -H", "fw-log", "effects-log -c 0", "supported-log-pages"),
    *("fid-support-effects-log", "mi-cmd-support-effects-log", "changed-ns-list-log", "resv-report -n 1 -e"),
    *(f"get-feature -f {number}" for number in (1, 2, 4, 8, 9, 10)),  # 11 is what each host's driver has set
)
# What the specification has differ between the two, by the first word of the line.
DIFFER = {
    "id-ctrl": {
        "cntlid": "the controller is made by Connect (dynamic controller model, Base 2.1, 3.1.1.2)",
        "cmic": "several hosts have a controller each (Base 2.1, figure 312, bit 1)",
        "oacs": "Doorbell Buffer Config is for memory-based transports (Base 2.1, 5.2.5)",
        "maxcmd": "mandatory over fabrics alone",
        "sgls": "commands over fabrics have SGLs, never PRPs (Base 2.1, 3.3.2.1)",
        "subnqn": "the subsystem that this target was given with --nqn",
        "ioccsz": "capsules exist over fabrics alone",
        "iorcsz": "capsules exist over fabrics alone",
        "icdoff": "capsules exist over fabrics alone",
        "msdbd": "capsules exist over fabrics alone",
        "fcatt": "Fabrics Controller Attributes",
        "ofcs": "Optional Fabric Commands Support",
    },
    "id-ns": {"nmic": "each host has a controller of its own, which share the namespaces"},
    "cmdset-ind-id-ns": {"nmic": "each host has a controller of its own, which share the namespaces"},
    "effects-log": {
        "ACS_0 (Delete I/O Submission Queue)": "queues are made by Connect",
        "ACS_1 (Create I/O Submission Queue)": "queues are made by Connect",
        "ACS_4 (Delete I/O Completion Queue)": "queues are made by Connect",
        "ACS_5 (Create I/O Completion Queue)": "queues are made by Connect",
        "ACS_124 (Doorbell Buffer Config)": "for memory-based transports (Base 2.1, 5.2.5)",
    },
}


def flat(value: Any) -> dict[str, Any]:
    """The fields of a page by name, those of its parts too."""
    if isinstance(value, list):
        return (
            {f"{number}": one for number, one in enumerate(value)}
            if not any(isinstance(one, dict) for one in value)
            else {name: one for part in value for name, one in flat(part).items()}
        )
    found: dict[str, Any] = {}
    for name, one in value.items():
        found |= flat(one) if isinstance(one, dict) else {name: one}
    return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """(the kernel's node of our target, the socket of the same controller as a PCI function)."""
    if why := prepare():
        pytest.skip(f"this kernel has no NVMe/TCP: {why}")
    socket = tmp_path / "pci.sock"
    where = ["--socket", str(socket), "--tcp", f"127.0.0.1:{PORT}", "--nqn", NQN]
    command = [sys.executable, "-m", "nvme_async.cli.main", "emulate", *where, "--size", "64MiB"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as emulator:
        try:
            assert emulator.stdout is not None
            assert emulator.stdout.readline()
            before = set(os.listdir("/sys/class/nvme"))
            sh("nvme", "connect", "-t", "tcp", "-a", "127.0.0.1", "-s", str(PORT), "-n", NQN)
            limit = time.monotonic() + 20
            while not (new := set(os.listdir("/sys/class/nvme")) - before):
                assert time.monotonic() < limit, "the kernel shows no controller"
                time.sleep(0.05)
            yield f"/dev/{new.pop()}", str(socket)
        finally:
            sh("nvme", "disconnect", "-n", NQN, check=False)
            emulator.send_signal(signal.SIGTERM)
            emulator.wait(30)


def test_values_over_tcp_are_those_over_pcie(served: tuple[str, str], tmp_path: Path) -> None:
    """The kernel's host with nvme-cli over TCP, and our command line over TCP, beside our command
    line on the PCI function.
    """
    node, socket = served
    control = tmp_path / "control"
    pci, tcp = f"vfio-user:{socket}", f"tcp:127.0.0.1:{PORT}/{NQN}"

    async def load() -> Manager:
        manager = Manager(control=control)
        await asyncio.gather(manager.load(pci), manager.load(tcp))
        return manager

    def ours(uri: str, line: str) -> Any:
        done = CliRunner().invoke(cli, ["--attach", str(control), *words_of(line, uri), "-o", "json"])
        assert done.exit_code == 0, f"{line} on {uri}: {done.output} {done.exception!r}"
        return json.loads(done.stdout)

    manager = asyncio.run(load())
    compared, unknown, differ = [], [], {}
    try:
        for line in LINES:
            done = subprocess.run(
                [NVME, *words_of(line, node), "-o", "json"], capture_output=True, text=True, timeout=60, check=False
            )
            try:
                theirs = json.JSONDecoder().raw_decode(
                    done.stdout[min(done.stdout.find(c) % (1 << 30) for c in "[{") :]
                )
            except ValueError:
                unknown.append(f"{line}: {(done.stderr or done.stdout).strip()}")
                continue
            over_pci, over_tcp = flat(ours(pci, line)), flat(ours(tcp, line))
            named = set(DIFFER.get(line.split()[0], ()))
            for what, values, free in (("nvme-cli", flat(theirs[0]), named), ("ours", over_tcp, named)):
                wrong = {
                    name: (over_pci.get(name), values.get(name))
                    for name in {**over_pci, **values}
                    if over_pci.get(name) != values.get(name) and name not in free and not counts(line, name)
                }
                assert not wrong, f"{line}, {what} over TCP: (PCIe, TCP) {wrong}"
            differ |= {name: (over_pci.get(name), over_tcp.get(name)) for name in named if name in over_tcp}
            mine = {name: one for name, one in over_tcp.items() if name != "cntlid" and not counts(line, name)}
            assert mine == {name: flat(theirs[0]).get(name) for name in mine}, line
            compared.append(line)
    finally:
        asyncio.run(manager.close())
    print(f"equal: {', '.join(compared)}\ndiffer (PCIe, TCP): {differ}\nnvme-cli can't show: {unknown}")
    assert {"id-ctrl", "id-ns -n 1", "id-iocs", "smart-log -H", "fw-log", "get-feature -f 1"} <= set(compared), unknown


def counts(line: str, name: str) -> bool:
    """Values that grow from one command to the next, and the name of nvme-cli's node."""
    if name == "Changed Attached Namespace List Log":
        return True
    words = ("units", "commands", "hours", "cycles", "time", "num_err", "temperature")
    return line.startswith("smart-log") and any(word in name for word in words)
