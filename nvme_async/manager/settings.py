"""The settings of a loaded device: the driver's options, and what happens to the controller when
its driver ends.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from nvme_async.driver.options import Options
from nvme_async.keepalive.config import parse_numa, parse_pool_pages, parse_setting
from nvme_async.keepalive.opening import KeepaliveOptions, OpenOptions
from nvme_async.manager.workers import EventLoop, Pin

_KEEPALIVE_OPTIONS = frozenset(field.name for field in attrs.fields(KeepaliveOptions))


HotPlug = Literal["off", "reload", "all"]


class ManagerOptions(OpenOptions, total=False):
    """The keyword arguments of Manager()."""

    workers: int | None
    event_loop: EventLoop
    pin: Pin
    wait_limit: float
    close_limit: float
    repairs: int
    hotplug: HotPlug
    control: str | os.PathLike[str] | None


@attrs.frozen
class Policy:
    """The manager's automatic actions. See Manager."""

    wait_limit: float
    close_limit: float
    repairs: int
    reload: bool


def split(given: Mapping[str, Any]) -> tuple[dict[str, Any], KeepaliveOptions]:
    """Splits keyword arguments of nvme_async.open(): (those of Options, those about keepalive).
        ConfigurationError for invalid ones
    before anything starts.
    """
    options = {name: value for name, value in given.items() if name not in _KEEPALIVE_OPTIONS}
    Options.of(options)
    keepalive_options = KeepaliveOptions(**{name: value for name, value in given.items() if name in _KEEPALIVE_OPTIONS})
    if isinstance(keepalive_options.keepalive, str):
        parse_setting(keepalive_options.keepalive)
    if keepalive_options.pool_pages is not None:
        parse_pool_pages(keepalive_options.pool_pages)
    if keepalive_options.pool_numa is not None:
        parse_numa(keepalive_options.pool_numa)
    return options, keepalive_options
