"""The options of a successor: those that it was given, and otherwise its predecessor's, from the
saved state.
"""

from __future__ import annotations

import logging
from typing import Any

import attrs

from nvme_async.driver.options import Options
from nvme_async.errors import ConfigurationError
from nvme_async.keepalive.state import State

log: logging.Logger = logging.getLogger("nvme_async")


def passed_on(options: Options) -> dict[str, Any]:
    """As saved and sent. None means unset, and older releases take some of these for numbers."""
    return attrs.asdict(options, filter=lambda _, value: value is not None)


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Those of a predecessor that this release knows."""
    known = {field.name for field in attrs.fields(Options)}
    return {name: value for name, value in options.items() if name in known}


def merge(state: State, given: dict[str, Any]) -> Options:
    """For a live restore."""
    inherited = _known(state.options)
    if state.fused:
        inherited["fused"] = True
    return Options.of(inherited | given | {"keepalive": True})


def merge_afresh(state: State | None, given: dict[str, Any], why: str) -> Options:
    """For a fresh bring-up after a predecessor. The saved state may be missing or damaged: then
    only `given` counts. Fused mode is not inherited without keepalive. why: the reason for the
    fresh bring-up, for the log.

    ConfigurationError for options of `given`.
    """
    chosen = Options.of({"keepalive": True} | given)
    if state is None:
        return chosen
    try:
        merged = merge(state, given)
    except (ConfigurationError, TypeError, ValueError) as error:
        log.warning("%s: %s; the predecessor's options can't be used: %s", state.uri, why, error)
        return chosen
    fused = merged.fused if chosen.keepalive else chosen.fused
    return attrs.evolve(merged, keepalive=chosen.keepalive, fused=fused)


def merge_offered(offered: Any, given: dict[str, Any]) -> Options:
    """For a successor whose predecessor shuts the controller down. offered: its message's; release
    0.1 sends none. Keepalive and fused mode, which belongs to it, depend on `given` alone.
    """
    inherited = _known(offered) if isinstance(offered, dict) else {}
    inherited.pop("fused", None)
    return Options.of(inherited | {"keepalive": False} | given)
