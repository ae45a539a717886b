"""The tests' view of the guest: controllers by role, the host's observations, binding through
plain sysfs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

PCI = Path("/sys/bus/pci")
BASELINE = Path("/run/lab/baseline.json")
NVME = "/usr/local/bin/nvme-2.13"
"""Debian 13's nvme-cli, see tests/vm/lab/image.py."""
# Command lines without the device: of a controller, and of a namespace {nsid}.
OF_CONTROLLER = (
    "id-ctrl",
    "list-ns",
    "list-ns --all",
    "list-endgrp",
    "list-ctrl",
    "nvm-id-ctrl",
    "primary-ctrl-caps",
    "list-secondary",
    "id-iocs",
    "smart-log -H",
    "fw-log",
    "effects-log -c 0",
    "effects-log -c 2",
    "error-log",
    "changed-ns-list-log",
    "endurance-log -g 1",
    "get-feature -f 1",
    "get-feature -f 2",
    "get-feature -f 2 -s 1",
    "get-feature -f 4",
    "get-feature -f 6",
    "get-feature -f 6 -s 3",
    "get-feature -f 8",
    "get-feature -f 9",
    "get-feature -f 10",
    "get-feature -f 25",
    "get-feature -f 29 --cdw11=1",
    "fdp configs -e 1",
    "fdp usage -e 1",
    "fdp stats -e 1",
    "fdp events -e 1",
    "zns id-ctrl",
)
OF_NAMESPACE = (
    "id-ns -n {nsid}",
    "ns-descs -n {nsid}",
    "cmdset-ind-id-ns -n {nsid}",
    "nvm-id-ns -n {nsid}",
    "list-ctrl -n {nsid}",
    "zns id-ns -n {nsid}",
    "zns report-zones -n {nsid}",
    "fdp status -n {nsid}",
    "get-feature -f 5 -n {nsid}",
    "get-feature -f 30 -n {nsid} --cdw11=0",
)
# Of a namespace that is not attached.
OF_DETACHED = ("id-ns -n {nsid} --force", "list-ctrl -n {nsid}")


# Controllers that the command line is compared on.
PRINTED = ("plain", "second", "many", "metadata", "cmb", "zoned", "virtualized")
# Those of the guest with the newer QEMU, see disk_guest.py.
PRINTED_NEWER = ("placement", "virtualized", "protected", "zoned")


class Host:
    """The channel to the host (tests/vm/lab/channel.py has the other end)."""

    def __init__(self, port: str = "/dev/ttyS1") -> None:
        self._fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        tty.setraw(self._fd, termios.TCSANOW)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def ask(self, **request: Any) -> Any:
        """The answer's "ok"; raises RuntimeError with the host's message if it refused."""
        with self._lock:
            os.write(self._fd, json.dumps(request).encode() + b"\n")
            line = b""
            while not line.endswith(b"\n"):
                line += os.read(self._fd, 65536)
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["ok"]

    def qmp(self, command: str, **arguments: Any) -> Any:
        """A command of QEMU's monitor."""
        return self.ask(qmp=command, arguments=arguments)

    def medium(self, role: str, nsid: int, offset: int, nbytes: int) -> bytes:
        """Bytes of a namespace's medium as the host sees them."""
        return bytes.fromhex(self.ask(copy=f"{role}-{nsid}", offset=offset, nbytes=nbytes))

    @contextmanager
    def witness(self) -> Iterator[Witness]:
        """What QEMU's controllers saw meanwhile."""
        witness = Witness(self, self.ask(trace="mark"))
        yield witness


class Witness:
    """QEMU's own trace since a given moment, which the driver under test can't fake."""

    def __init__(self, host: Host, since: int) -> None:
        self._host, self._since = host, since

    def events(self) -> list[tuple[str, str]]:
        """(event, its text), oldest first."""
        return [(event, text) for event, text in self._host.ask(trace="events", since=self._since)]

    def names(self) -> list[str]:
        return [event for event, _ in self.events()]

    def count(self, event: str) -> int:
        return self.names().count(event)

    def complaints(self) -> list[tuple[str, str]]:
        """What QEMU reports as an error or undefined behaviour of the driver."""
        return [entry for entry in self.events() if entry[0].startswith(("pci_nvme_err", "pci_nvme_ub"))]


def _json(*command: str) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def _nsids(node: str, *which: str) -> list[int]:
    return [item["nsid"] for item in _json(NVME, "list-ns", node, *which, "-o", "json")["nsid_list"]]


def lines_of(attached: list[int], detached: list[int]) -> list[str]:
    """Command lines for a controller with these namespaces."""
    lines = [line.format(nsid=nsid) for nsid in attached for line in OF_NAMESPACE]
    lines += [line.format(nsid=nsid) for nsid in detached for line in OF_DETACHED]
    return [*OF_CONTROLLER, *lines]


def _printed(node: str, line: str) -> Any:
    """nvme-cli's JSON of a command line; None if the controller or nvme-cli refuses it."""
    done = subprocess.run(
        [NVME, *words_of(line, node), "-o", "json"], capture_output=True, text=True, timeout=60, check=False
    )
    # Some print a line before the JSON.
    text = re.sub(r"^[^\[{]*\n", "", done.stdout)
    try:
        return json.JSONDecoder().raw_decode(text)[0] if done.returncode == 0 else None
    except ValueError:
        return None


def words_of(line: str, device: str) -> list[str]:
    """A command line with the device in its place."""
    words = line.split()
    name = 2 if words[0] in ("zns", "fdp") else 1
    return [*words[:name], device, *words[name:]]


def take_baseline() -> dict[str, Any]:
    """nvme-cli's output for every controller while the kernel drives it, by role. Kept for later
    processes.
    """
    if BASELINE.exists():
        known: dict[str, Any] = json.loads(BASELINE.read_text())
        return known
    result: dict[str, Any] = {}
    compared = {*PRINTED, *PRINTED_NEWER}
    for entry in sorted(Path("/sys/class/nvme").iterdir()):
        role = (entry / "serial").read_text().strip()
        node = f"/dev/{entry.name}"
        nsids = _nsids(node)
        printed = {}
        if role in compared:
            detached = [nsid for nsid in _nsids(node, "--all") if nsid not in nsids]
            printed = {line: _printed(node, line) for line in lines_of(nsids, detached)}
        result[role] = {
            "address": (entry / "address").read_text().strip(),
            "node": entry.name,
            "controller": _json(NVME, "id-ctrl", node, "-o", "json"),
            "namespaces": {str(nsid): _json(NVME, "id-ns", node, "-n", str(nsid), "-o", "json") for nsid in nsids},
            "printed": printed,
        }
    BASELINE.parent.mkdir(exist_ok=True)
    BASELINE.write_text(json.dumps(result))
    return result


def driver(address: str) -> str | None:
    """The kernel driver of a function."""
    link = PCI / "devices" / address / "driver"
    return link.resolve().name if link.exists() else None


def rebind(address: str, wanted: str) -> None:
    """Bind the function to a driver, without any of our own code."""
    if driver(address) == wanted:
        return
    function = PCI / "devices" / address
    if driver(address):
        (function / "driver" / "unbind").write_text(address)
    (function / "driver_override").write_text(wanted + "\n")
    (PCI / "drivers_probe").write_text(address)
    assert driver(address) == wanted


def block_device(address: str, nsid: int, timeout: float = 20) -> Path:
    """The kernel's node of a namespace; waits for the kernel to find it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for entry in Path("/sys/block").glob("nvme*"):
            if (entry / "hidden").read_text().strip() == "1" or not Path("/dev", entry.name).exists():
                continue
            if (entry / "nsid").read_text().strip() != str(nsid):
                continue
            parent = (entry / "device").resolve()
            controllers = (
                [parent]
                if (parent / "address").exists()
                else [link.resolve() for link in parent.glob("nvme*") if (link / "address").exists()]
            )
            if any((controller / "address").read_text().strip() == address for controller in controllers):
                return Path("/dev", entry.name)
        time.sleep(0.05)
    raise AssertionError(f"the kernel shows no block device for namespace {nsid} of {address}")
