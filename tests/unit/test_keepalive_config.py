"""Every row of the configuration tables, precedence, and the table of outcomes."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_async.errors import ConfigurationError
from nvme_async.keepalive import config, sizing
from nvme_async.keepalive.config import (
    ALWAYS_FLR,
    DISABLE,
    KEEP_ALIVE,
    NUMA,
    POOL,
    POOL_OVERRIDE,
    VFIO,
    Decision,
    Outcome,
    decide,
    outcome,
    outcomes,
)
from nvme_async.keepalive.sizing import Wanted, size_pool

POOLED = {POOL: "512"}


@pytest.fixture(autouse=True)
def _command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "command_line", config.CommandLine())


def decided(environ: dict[str, str] | None = None, **arguments: Any) -> Decision:
    return decide(environ=environ or {}, **arguments)


# -- OPENHCL_NVME_KEEP_ALIVE -----------------------------------------------------------------------


@pytest.mark.parametrize("value", ["host,privatepool", "enabled", "HOST,PrivatePool", "Enabled", "ENABLED"])
@pytest.mark.parametrize("holder", [None, "keeper /run/k.sock"])
def test_the_values_that_switch_it_on(value: str, holder: str | None) -> None:
    decision = decided({KEEP_ALIVE: value, **POOLED}, holder=holder)
    assert decision.enabled
    assert decision.setting == "host,privatepool"
    assert decision.setting_source == f"environment {KEEP_ALIVE}"
    assert decision.pool_pages == 512
    assert decision.pool_bytes == 512 * 4096
    assert decision.warnings == ()


@pytest.mark.parametrize(
    ("value", "setting", "reason"),
    [
        ("host,noprivatepool", "host,noprivatepool", "noprivatepool"),
        ("nohost,privatepool", "nohost,privatepool", "nohost"),
        ("nohost,noprivatepool", "nohost,noprivatepool", "nohost"),
        ("NoHost,NoPrivatePool", "nohost,noprivatepool", "noprivatepool"),
        ("disabled", "disabled", "disabled"),
        ("Disabled", "disabled", "disabled"),
        ("disabled,host,privatepool", "disabled", "disabled"),
        ("disabled,nohost,noprivatepool", "disabled", "disabled"),
        ("DISABLED, x, x", "disabled", "disabled"),
    ],
)
def test_the_values_that_switch_it_off(value: str, setting: str, reason: str) -> None:
    # A holder and a pool exist: the explicit value overrides the inferred one.
    decision = decided({KEEP_ALIVE: value, **POOLED}, holder="systemd")
    assert not decision.enabled
    assert decision.setting == setting
    assert reason in decision.why
    assert decision.warnings == ()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "1",
        "yes",
        "host",
        "privatepool",
        "privatepool,host",
        "host, privatepool",
        "host,privatepool ",
        "disabledx",
        "enabled,",
    ],
)
def test_other_values_mean_off_with_a_warning_that_quotes_them(value: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "nvme_async"):
        decision = decided({KEEP_ALIVE: value, **POOLED}, holder="systemd")
    assert not decision.enabled
    assert len(decision.warnings) == 1
    assert KEEP_ALIVE in decision.warnings[0]
    assert repr(value) in decision.warnings[0]
    assert decision.warnings[0] in caplog.text


@pytest.mark.parametrize(
    ("holder", "pool", "setting", "enabled"),
    [
        ("keeper /run/k.sock", "512", "host,privatepool", True),
        ("keeper /run/k.sock", None, "host,privatepool", True),  # a holder justifies a pool of the default size
        ("keeper /run/k.sock", "off", "host,noprivatepool", False),
        (None, "512", "nohost,privatepool", False),
        (None, None, "nohost,noprivatepool", False),
        (None, "0", "nohost,noprivatepool", False),
    ],
)
def test_inferred_when_unset(holder: str | None, pool: str | None, setting: str, enabled: bool) -> None:
    decision = decided({} if pool is None else {POOL: pool}, holder=holder)
    assert decision.setting == setting
    assert decision.setting_source == "inferred"
    assert decision.enabled is enabled


def test_keepalive_needs_a_pool_with_pages() -> None:
    decision = decided({KEEP_ALIVE: "host,privatepool", POOL: "0"}, holder="systemd")
    assert not decision.enabled
    assert "no pages" in decision.why


# -- the pool --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "pages"), [("1", 1), ("8192", 8192), ("0", 0), ("off", 0), ("OFF", 0), (str(1 << 28), 1 << 28)]
)
def test_pool_sizes(value: str, pages: int) -> None:
    decision = decided({POOL: value}, holder="systemd")
    assert decision.pool_pages == pages
    assert decision.pool_source == f"environment {POOL}"
    assert decision.enabled is (pages > 0)
    assert decision.warnings == ()


@pytest.mark.parametrize(
    "value",
    ["", "on", "-1", "4k", "1e3", "0x100", " 512", "1_000", "٣", "release ", str((1 << 28) + 1), "9" * 30],
)
def test_an_invalid_pool_size_means_no_pool_with_a_warning(value: str) -> None:
    decision = decided({POOL: value, KEEP_ALIVE: "enabled"}, holder="systemd")
    assert decision.pool_pages == 0
    assert not decision.enabled
    assert len(decision.warnings) == 1
    assert POOL in decision.warnings[0]
    assert value in decision.warnings[0]


def test_without_a_size_the_pool_has_the_default_if_useful() -> None:
    assert decided({}, holder="systemd", default_pool_pages=77).pool_pages == 77
    assert decided({KEEP_ALIVE: "enabled"}, default_pool_pages=77).pool_pages == 77
    assert decided({}, keepalive=True, default_pool_pages=77).pool_pages == 77
    assert decided({}, default_pool_pages=77).pool_pages == 0
    assert decided({KEEP_ALIVE: "disabled"}, holder="systemd", default_pool_pages=77).pool_pages == 0


# -- the rules "release" and "debug" ---------------------------------------------------------------


@pytest.fixture
def unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "memory_left", lambda: None)
    monkeypatch.setattr(sizing, "lockable", lambda: None)


def test_a_queue_pair_of_256_entries_takes_69_pages() -> None:
    """4 for the submission queue, 1 for the completion queue, 64 for data: OpenHCL's figure."""
    assert sizing.queue_pair_pages(256) == 69
    assert sizing.queue_pair_pages(1024) == 16 + 4 + 256
    assert sizing.queue_pair_pages(2) == 1 + 1 + 1


@pytest.mark.usefixtures("unbounded")
@pytest.mark.parametrize("value", ["release", "debug", "RELEASE", "Debug"])
@pytest.mark.parametrize("variable", [POOL, POOL_OVERRIDE])
def test_the_rules_size_a_pool(value: str, variable: str) -> None:
    decision = decided({variable: value}, holder="systemd")
    assert decision.enabled
    assert decision.pool_pages == size_pool(value.lower(), Wanted()).pages
    assert decision.pool_pages % 512 == 0
    assert decision.pool_source == f"environment {variable}"
    assert decision.warnings == ()
    for text in (decision.pool_how, str(decision), decision.inspect()["pool_how"]):
        assert f"{value.lower()}: " in text
        assert "69 +" in text


@pytest.mark.usefixtures("unbounded")
@pytest.mark.parametrize(("rule", "drives"), [("release", 1), ("debug", 3)])
@pytest.mark.parametrize("cpus", [1, 2, 4, 16])
def test_one_queue_pair_per_processor_and_drive(rule: str, drives: int, cpus: int) -> None:
    size = size_pool(rule, Wanted(), cpus=cpus)
    assert size.pages >= drives * cpus * 69
    one = 69 + 137  # and what this driver also keeps there: trackers and PRP lists
    assert 0 <= size.pages - drives * (cpus * one + 41) < 512
    assert f"{drives} drive" in size.how
    assert f"({cpus} queue pair" in size.how


@pytest.mark.usefixtures("unbounded")
def test_pool_rules_respect_io_queues_and_queue_entries() -> None:
    assert size_pool("release", Wanted(io_queues=4), cpus=64).pages == size_pool("release", Wanted(), cpus=4).pages
    assert (
        size_pool("release", Wanted(queue_entries=1024), cpus=8).pages
        > 3 * size_pool("release", Wanted(), cpus=8).pages
    )


def test_pool_rules_are_limited_by_memory_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "memory_left", lambda: None)
    monkeypatch.setattr(sizing, "lockable", lambda: sizing.Bound(8 << 20, "this process may lock 8388608 bytes"))
    whole, cut = size_pool("release", Wanted(), cpus=16), size_pool("release", Wanted(locked=True), cpus=16)
    assert "cut down" not in whole.how
    assert cut.how == f"{whole.how}, cut down to {cut.pages} pages: this process may lock 8388608 bytes"
    assert cut.pages == 3 * 512
    monkeypatch.setattr(sizing, "memory_left", lambda: sizing.Bound(1 << 20, "the control group /x is limited"))
    assert "control group /x" in size_pool("debug", Wanted()).how
    assert 0 < size_pool("debug", Wanted()).pages < 256
    monkeypatch.setattr(sizing, "memory_left", lambda: sizing.Bound(100, "nothing is left"))
    assert size_pool("debug", Wanted()).pages == 0


def test_processors_by_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert sizing.processors(tmp_path) == 8
    group = tmp_path / "sys/fs/cgroup/a/b"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    (group / "cpu.max").write_text("max 100000\n")
    assert sizing.processors(tmp_path) == 8
    (group.parent / "cpu.max").write_text("250000 100000\n")
    assert sizing.processors(tmp_path) == 3
    (group / "cpu.max").write_text("1000 100000\n")
    assert sizing.processors(tmp_path) == 1


# -- the settings that existing OpenHCL environments carry -----------------------------------------

TABLE: list[tuple[dict[str, str], dict[str, Any], str | None]] = [
    # environment, result, part of a warning
    ({POOL: "512"}, {"pool_pages": 512, "enabled": True}, None),
    ({POOL: "off"}, {"pool_pages": 0, "enabled": False}, None),
    ({POOL: "0"}, {"pool_pages": 0, "enabled": False}, None),
    ({POOL: "asdf"}, {"pool_pages": 0, "enabled": False}, "'asdf'"),
    ({POOL: "release"}, {"enabled": True, "pool_source": f"environment {POOL}"}, None),
    ({POOL: "debug"}, {"enabled": True, "pool_source": f"environment {POOL}"}, None),
    ({}, {"pool_pages": 8192, "pool_source": "inferred", "enabled": True}, None),
    ({POOL_OVERRIDE: "512", POOL: "off"}, {"pool_pages": 512, "pool_source": f"environment {POOL_OVERRIDE}"}, None),
    ({POOL_OVERRIDE: "off", POOL: "512"}, {"pool_pages": 0, "enabled": False}, None),
    ({POOL_OVERRIDE: "debug", POOL: "release"}, {"enabled": True, "pool_source": f"environment {POOL_OVERRIDE}"}, None),
    ({POOL_OVERRIDE: "x", POOL: "512"}, {"pool_pages": 0, "enabled": False}, "'x'"),
    ({POOL_OVERRIDE: "", POOL: "512"}, {"pool_pages": 0, "enabled": False}, POOL_OVERRIDE),
    ({POOL_OVERRIDE: "512"}, {"pool_pages": 512, "enabled": True}, None),
    ({DISABLE: "1"}, {"enabled": False, "setting": "disabled", "setting_source": f"environment {DISABLE}"}, None),
    ({DISABLE: "yes"}, {"enabled": False, "setting": "disabled"}, None),
    ({DISABLE: ""}, {"enabled": False, "setting": "disabled"}, None),
    ({DISABLE: "00"}, {"enabled": False, "setting": "disabled"}, None),
    ({DISABLE: "0"}, {"enabled": True, "setting": "host,privatepool", "setting_source": "inferred"}, None),
    ({DISABLE: "1", KEEP_ALIVE: "host,privatepool", POOL: "512"}, {"enabled": False, "pool_pages": 512}, None),
    ({DISABLE: "0", KEEP_ALIVE: "disabled"}, {"enabled": False, "setting_source": f"environment {KEEP_ALIVE}"}, None),
    ({NUMA: "split"}, {"pool_numa": "split", "numa_source": f"environment {NUMA}", "enabled": True}, None),
    ({NUMA: "SPLIT"}, {"pool_numa": "split"}, None),
    ({NUMA: "interleave"}, {"pool_numa": "", "enabled": True}, "'interleave'"),
    ({NUMA: ""}, {"pool_numa": ""}, NUMA),
    ({}, {"pool_numa": "", "numa_source": "inferred"}, None),
    ({ALWAYS_FLR: "1"}, {"always_flr": True, "always_flr_source": f"environment {ALWAYS_FLR}", "enabled": True}, None),
    ({ALWAYS_FLR: "0"}, {"always_flr": False}, None),
    ({ALWAYS_FLR: "true"}, {"always_flr": False}, "'true'"),
    ({}, {"always_flr": False, "always_flr_source": "inferred"}, None),
]


@pytest.mark.parametrize(("environ", "expected", "warning"), TABLE)
def test_each_row_of_the_table(environ: dict[str, str], expected: dict[str, Any], warning: str | None) -> None:
    decision = decided(environ, holder="systemd")
    assert {name: getattr(decision, name) for name in expected} == expected
    assert [warning in text for text in decision.warnings] == ([True] if warning else [])


def test_the_disable_variable_overrides_all_settings() -> None:
    for arguments in ({"keepalive": True}, {"keepalive": "host,privatepool", "pool_pages": 64}):
        decision = decided({DISABLE: "1"}, holder="systemd", **arguments)
        assert not decision.enabled
        assert decision.setting_source == f"environment {DISABLE}"
        assert decided({DISABLE: "1"}, disable_keepalive=False, **arguments).enabled
        assert not decided({}, disable_keepalive=True, **arguments).enabled
    config.command_line.disable_keepalive = True
    assert decided({}, keepalive=True).setting_source == "command line"


# -- VFIO ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "used"), [("1", True), ("true", True), ("TRUE", True), ("0", False), ("false", False), ("False", False)]
)
def test_vfio(value: str, used: bool) -> None:
    decision = decided({VFIO: value})
    assert decision.vfio is used
    assert decision.vfio_source == f"environment {VFIO}"
    decision.check_scheme("vfio-user:/run/c.sock")
    decision.check_scheme("emulated:")
    if used:
        decision.check_scheme("pci:0000:01:00.0")
    else:
        with pytest.raises(ConfigurationError, match=VFIO):
            decision.check_scheme("PCI:0000:01:00.0")


def test_vfio_unset_or_invalid() -> None:
    assert decided({}).vfio
    decision = decided({VFIO: "maybe"})
    assert not decision.vfio
    assert "'maybe'" in decision.warnings[0]


# -- precedence ------------------------------------------------------------------------------------

OPPOSITE = {KEEP_ALIVE: "disabled", POOL_OVERRIDE: "7", POOL: "6", VFIO: "0", ALWAYS_FLR: "0", NUMA: "no"}


def test_the_command_line_overrides_the_environment() -> None:
    config.command_line.keepalive = config.parse_setting("enabled")
    config.command_line.pool_pages = 9
    config.command_line.vfio = True
    config.command_line.pool_numa = "split"
    config.command_line.always_flr = True
    decision = decided(OPPOSITE)
    assert (decision.enabled, decision.pool_pages, decision.vfio) == (True, 9, True)
    assert (decision.pool_numa, decision.always_flr) == ("split", True)
    sources = {decision.setting_source, decision.pool_source, decision.vfio_source}
    assert sources | {decision.numa_source, decision.always_flr_source} == {"command line"}


def test_arguments_override_the_command_line() -> None:
    config.command_line.keepalive = config.parse_setting("disabled")
    config.command_line.pool_pages = 9
    config.command_line.vfio = False
    decision = decided(OPPOSITE, keepalive="host,privatepool", pool_pages=11, vfio=True)
    assert (decision.enabled, decision.pool_pages, decision.vfio) == (True, 11, True)
    assert decision.setting_source == "argument keepalive"
    assert decision.pool_source == "argument pool_pages"
    assert decision.vfio_source == "argument vfio"
    decision = decided(OPPOSITE, pool_numa="split", always_flr=True, pool_pages="debug")
    assert (decision.numa_source, decision.always_flr_source) == ("argument pool_numa", "argument always_flr")
    assert decision.pool_source == "argument pool_pages"
    line = str(decision)
    assert "pool split over NUMA nodes (argument pool_numa)" in line
    assert "always a function level reset at open (argument always_flr)" in line


@pytest.mark.parametrize(
    ("argument", "option", "fused", "source", "words"),
    [
        (None, None, None, "inferred", ""),
        (None, True, True, "command line", "fused on (command line)"),
        (None, False, False, "command line", "fused off (command line)"),
        (True, None, True, "argument fused", "fused on (argument fused)"),
        (False, None, False, "argument fused", "fused off (argument fused)"),
        (True, False, True, "argument fused", "fused on (argument fused)"),
        (False, True, False, "argument fused", "fused off (argument fused)"),
    ],
)
def test_fused(argument: bool | None, option: bool | None, fused: bool | None, source: str, words: str) -> None:
    config.command_line.fused = option
    decision = decided({}, fused=argument)
    assert (decision.fused, decision.fused_source) == (fused, source)
    assert (decision.inspect()["fused"], decision.inspect()["fused_source"]) == (fused, source)
    assert words in str(decision)
    assert ("fused" in str(decision)) is bool(words)


def test_each_setting_has_its_own_precedence() -> None:
    decision = decided({KEEP_ALIVE: "enabled", POOL: "7"}, pool_pages="off")
    assert decision.setting_source == f"environment {KEEP_ALIVE}"
    assert decision.pool_source == "argument pool_pages"
    assert not decision.enabled


def test_overridden_environment_variables_cause_no_warning() -> None:
    assert decided({KEEP_ALIVE: "nonsense"}, keepalive=True).warnings == ()


@pytest.mark.parametrize(
    "arguments",
    [
        {"keepalive": "perhaps"},
        {"keepalive": ""},
        {"pool_pages": -1},
        {"pool_pages": "many"},
        {"pool_numa": "interleave"},
        {"pool_pages": (1 << 28) + 1},
    ],
)
def test_an_invalid_argument_is_an_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=repr(next(iter(arguments.values())))):
        decided({}, **arguments)


@given(st.text(max_size=40))
def test_no_unknown_text_switches_keepalive_on(text: str) -> None:
    decision = decide(environ={KEEP_ALIVE: text, POOL: "8"}, holder="systemd")
    assert decision.enabled == (text.lower() in ("enabled", "host,privatepool"))


# -- how it is reported


def test_a_decision_is_one_line_in_the_log_and_plain_data(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "nvme_async"):
        decision = decided({KEEP_ALIVE: "enabled", POOL: "512"}, holder="keeper /run/k.sock")
    line = str(decision)
    assert "\n" not in line
    assert [record.getMessage() for record in caplog.records] == [line]
    for part in (
        "keepalive on",
        "keeper /run/k.sock",
        "host,privatepool",
        KEEP_ALIVE,
        "512 pages",
        POOL,
        "vfio on (inferred)",
    ):
        assert part in line
    assert json.loads(json.dumps(decision.inspect())) == {
        "enabled": True,
        "why": decision.why,
        "setting": "host,privatepool",
        "setting_source": f"environment {KEEP_ALIVE}",
        "pool_pages": 512,
        "pool_source": f"environment {POOL}",
        "vfio": True,
        "vfio_source": "inferred",
        "holder": "keeper /run/k.sock",
        "warnings": [],
        "pool_how": "",
        "pool_numa": "",
        "numa_source": "inferred",
        "always_flr": False,
        "always_flr_source": "inferred",
        "fused": None,
        "fused_source": "inferred",
        "settings": f"setting host,privatepool (environment {KEEP_ALIVE}), pool 512 pages (environment {POOL}), "
        "vfio on (inferred)",
    }


# -- what happens to the previous run's controllers


@pytest.mark.parametrize(
    ("saved", "pool", "keepalive", "expected"),
    [
        (True, True, True, Outcome.LIVE_RESTORE),
        (True, True, False, Outcome.RECLAIM),
        (True, False, True, Outcome.MISSING_POOL),
        (True, False, False, Outcome.MISSING_POOL),
        (False, False, True, Outcome.FRESH),
        (False, True, True, Outcome.FRESH),
        (False, False, False, Outcome.FRESH),
        (False, True, False, Outcome.FRESH),
    ],
)
def test_outcome(saved: bool, pool: bool, keepalive: bool, expected: Outcome) -> None:
    assert outcome(saved=saved, pool=pool, keepalive=keepalive) is expected


def test_outcomes_of_some_devices_only() -> None:
    assert outcomes({"a:": True, "c:": False, "gone:": True}, ["a:", "b:", "c:"], keepalive=True) == {
        "a:": Outcome.LIVE_RESTORE,
        "b:": Outcome.FRESH,
        "c:": Outcome.MISSING_POOL,
        "gone:": Outcome.RECLAIM,
    }
    assert outcomes({"a:": True}, ["a:", "b:"], keepalive=False) == {"a:": Outcome.RECLAIM, "b:": Outcome.FRESH}
