"""Every row of the configuration tables, precedence, and the table of outcomes."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_async.errors import ConfigurationError
from nvme_async.keepalive import config
from nvme_async.keepalive.config import KEEP_ALIVE, POOL, VFIO, Decision, Outcome, decide, outcome, outcomes

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
    # A holder and a pool are there: the explicit value wins over what would be inferred.
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
def test_anything_else_is_off_with_a_warning_that_quotes_it(value: str, caplog: pytest.LogCaptureFixture) -> None:
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
        ("keeper /run/k.sock", None, "host,privatepool", True),  # a holder is a use for a pool of the default size
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


def test_it_runs_only_with_a_pool_that_has_pages() -> None:
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
    ["", "on", "-1", "4k", "1e3", "0x100", " 512", "1_000", "٣", "debug", "release", str((1 << 28) + 1), "9" * 30],
)
def test_an_invalid_pool_is_none_with_a_warning(value: str) -> None:
    decision = decided({POOL: value, KEEP_ALIVE: "enabled"}, holder="systemd")
    assert decision.pool_pages == 0
    assert not decision.enabled
    assert len(decision.warnings) == 1
    assert POOL in decision.warnings[0]
    assert value in decision.warnings[0]


def test_without_a_size_the_pool_has_the_default_where_it_is_of_use() -> None:
    assert decided({}, holder="systemd", default_pool_pages=77).pool_pages == 77
    assert decided({KEEP_ALIVE: "enabled"}, default_pool_pages=77).pool_pages == 77
    assert decided({}, keepalive=True, default_pool_pages=77).pool_pages == 77
    assert decided({}, default_pool_pages=77).pool_pages == 0
    assert decided({KEEP_ALIVE: "disabled"}, holder="systemd", default_pool_pages=77).pool_pages == 0


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


def test_vfio_unset_and_invalid() -> None:
    assert decided({}).vfio
    decision = decided({VFIO: "maybe"})
    assert not decision.vfio
    assert "'maybe'" in decision.warnings[0]


# -- precedence ------------------------------------------------------------------------------------

OPPOSITE = {KEEP_ALIVE: "disabled", POOL: "7", VFIO: "0"}


def test_the_command_line_comes_before_the_environment() -> None:
    config.command_line.keepalive = config.parse_setting("enabled")
    config.command_line.pool_pages = 9
    config.command_line.vfio = True
    decision = decided(OPPOSITE)
    assert (decision.enabled, decision.pool_pages, decision.vfio) == (True, 9, True)
    assert {decision.setting_source, decision.pool_source, decision.vfio_source} == {"command line"}


def test_arguments_come_before_the_command_line() -> None:
    config.command_line.keepalive = config.parse_setting("disabled")
    config.command_line.pool_pages = 9
    config.command_line.vfio = False
    decision = decided(OPPOSITE, keepalive="host,privatepool", pool_pages=11, vfio=True)
    assert (decision.enabled, decision.pool_pages, decision.vfio) == (True, 11, True)
    assert decision.setting_source == "argument keepalive"
    assert decision.pool_source == "argument pool_pages"
    assert decision.vfio_source == "argument vfio"


def test_each_setting_has_a_precedence_of_its_own() -> None:
    decision = decided({KEEP_ALIVE: "enabled", POOL: "7"}, pool_pages="off")
    assert decision.setting_source == f"environment {KEEP_ALIVE}"
    assert decision.pool_source == "argument pool_pages"
    assert not decision.enabled


def test_the_environment_is_not_warned_about_where_it_does_not_count() -> None:
    assert decided({KEEP_ALIVE: "nonsense"}, keepalive=True).warnings == ()


@pytest.mark.parametrize(
    "arguments",
    [
        {"keepalive": "perhaps"},
        {"keepalive": ""},
        {"pool_pages": -1},
        {"pool_pages": "many"},
        {"pool_pages": (1 << 28) + 1},
    ],
)
def test_an_argument_that_makes_no_sense_is_an_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=repr(next(iter(arguments.values())))):
        decided({}, **arguments)


@given(st.text(max_size=40))
def test_no_text_switches_it_on_by_accident(text: str) -> None:
    decision = decide(environ={KEEP_ALIVE: text, POOL: "8"}, holder="systemd")
    assert decision.enabled == (text.lower() in ("enabled", "host,privatepool"))


# -- how it is told --------------------------------------------------------------------------------


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
    }


# -- what becomes of what the previous run left ----------------------------------------------------


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
