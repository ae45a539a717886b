"""Tables on a terminal of 80 columns and in a pipe: fewer columns, no truncated figures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nvme_async.cli.columns import Column, elided, indented, table
from nvme_async.cli.inspect import as_lines, as_tree, show_tree

COLUMNS = [Column("device", right=False, elastic=True), Column("IOPS"), Column("intr/s", 2), Column("memory", 1)]


@given(
    rows=st.lists(
        st.tuples(st.text("abc:/", max_size=70), *[st.integers(0, 10**12).map(str)] * 3), min_size=1, max_size=5
    ),
    width=st.integers(30, 120),
)
def test_figures_are_complete_or_their_column_is_dropped(rows: list[tuple[str, ...]], width: int) -> None:
    lines = table(COLUMNS, rows, width)
    assert max(map(len, lines)) <= width
    assert [word for word in lines[0].split() if word != "device"][:1] == ["IOPS"]
    shown = lines[0].split()
    for line, row in zip(lines[1:], rows, strict=True):
        figures = line.split()[-(len(shown) - 1) :]
        assert figures == [row[at] for at, column in enumerate(COLUMNS) if at and column.name in shown]
    for line in table(COLUMNS, rows):
        assert len(line.split()) >= 3


def test_truncated_names_keep_their_end() -> None:
    assert elided("vfio-user:/run/controllers/number-17.sock", 24) == "vfio-use…/number-17.sock"
    assert elided("short", 24) == "short"


def test_wrapped_text_is_indented() -> None:
    text = "one word after another " * 6
    lines = indented("problem  ", text, 60).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 60
    assert all(line.startswith("         one") or line[:9] in ("problem  ", " " * 9) for line in lines)
    assert indented("problem  ", text.strip()) == "problem  " + text.strip()


def queue(qid: int, reaped: int) -> dict[str, Any]:
    return {
        "qid": qid,
        "depth": 256,
        "mode": "adaptive",
        "sq": {"tail": 200, "doorbells": 123456789},
        "cq": {"head": 100, "phase": 1, "reaped": reaped, "doorbells": 123456789},
        "outstanding": 32,
        "waiting": 3,
        "completions_per_reap": 12.3,
        "doorbells_per_command": 0.25,
        "interrupts": 9876543210,
        "spins": 123456,
        "errors": 0,
        "reaps": 1000,
        "closed": False,
        "pending": [{"cid": 7, "name": "Read", "nsid": 1, "lba": 99, "nbytes": 4096, "age": 1.5, "orphan": True}],
    }


def state(devices: int, reaped: int = 98765432109) -> dict[str, Any]:
    def device(number: int) -> dict[str, Any]:
        controller = {
            "model": "A model of forty characters, which is most",
            "serial": "SERIAL-OF-TWENTY-CHS",
            "firmware": "FW123456",
            "version": "2.0",
            "resets": 0,
            "timeouts": 0,
            "aborts": 0,
            "events": 0,
            "namespaces": [{"nsid": 1, "nbytes": 1 << 40, "blocks": 1 << 28, "block_size": 4096, "gone": None}],
            "admin_queue": queue(0, 10),
            "io_queues": [queue(1, reaped + number), queue(2, reaped)],
            "errors": {},
            "memory": {"pools": [], "registered": []},
        }
        return {
            "state": "ready",
            "worker": "worker-0",
            "failure": None,
            "mailbox": {"running": None, "waiting": []},
            "keepalive": {"on": False, "decision": None},
            "servicings": 0,
            "repairs": 0,
            "waiting_calls": 0,
            "retried_calls": 0,
            "controller": controller,
        }

    worker = {"name": "worker-0", "event_loop": "uvloop", "devices": devices, "cpu_seconds": 1.0, "cpus": None}
    names = [f"vfio-user:/run/user/1000/controllers/number-{number:03}.sock" for number in range(devices)]
    return {
        "pid": 4711,
        "since": 0.0,
        "workers": [worker],
        "devices": {name: device(number) for number, name in enumerate(names)},
    }


@pytest.mark.parametrize("devices", [1, 3, 60])
def test_top_fits_a_terminal_of_80_by_24(devices: int) -> None:
    lines = as_lines(state(devices, 0), state(devices), 1.0, 80, 24)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    header = lines[1].split()
    assert header[:2] == ["device", "state"]
    assert {"IOPS", "out", "errors/s"} <= set(header)
    assert "…" in lines[2]
    assert "number-0" in lines[2]
    assert "198G" in lines[2], "two queues of 98.8 G a second"
    if devices == 60:
        assert lines[-1] == "and 40 more"
    whole = as_lines(state(devices, 0), state(devices), 1.0)
    assert len(whole) == devices + 2
    assert " ".join(whole[1].split()[2:]) == ("IOPS intr/s doorbells/s errors/s out waiting per reap resets memory")


def test_inspect_fits_80_columns_and_prints_everything_to_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(as_tree(state(1), 80))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    (header,) = [line for line in lines if " qid " in line]
    assert {"out", "done", "intr", "waiting"} <= set(header.split())
    assert any("98765432109" in line and "9876543210 " in f"{line} " for line in lines)
    show_tree(state(1))
    text = capsys.readouterr().out
    assert "per command" in text
    assert "queue 1 cid 7: Read namespace 1 lba 99, 4096 bytes, 1.5 s, no waiter" in text
