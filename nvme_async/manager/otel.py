"""The manager's metrics for OpenTelemetry, from the same source as Prometheus'."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from nvme_async.errors import ConfigurationError
from nvme_async.manager.metrics import Inspected, ManagerCollector

try:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter
    from prometheus_client.core import Metric
except ImportError as error:
    raise ConfigurationError("OpenTelemetry is not installed: install nvme_async[otel]") from error


LONGEST_EXPORT = 5.0
"""Seconds for which a collection is used by the metrics of one export."""


def instrument(manager: Inspected, meter: Meter | None = None) -> None:
    """Offers the counters and gauges of `manager.metrics()` to OpenTelemetry, under the same names.

    meter: by default that of the global provider, which the application has set up. Histograms are
    Prometheus' alone: their buckets are the driver's, and OpenTelemetry takes only single values.
    """
    chosen = meter if meter is not None else get_meter("nvme_async")
    collector = ManagerCollector(manager)
    snapshots = _Snapshots(collector)
    for family in list(collector.collect()):
        name, text = family.name, family.documentation
        if family.type == "counter":
            chosen.create_observable_counter(name, [_values(snapshots, name)], description=text)
        elif family.type == "gauge":
            chosen.create_observable_gauge(name, [_values(snapshots, name)], description=text)


class _Snapshots:
    """One collection for all metrics of an export, which asks for each of them once: a collection
    inspects every controller on its own thread. From any thread.
    """

    def __init__(self, collector: ManagerCollector) -> None:
        self._collector = collector
        self._lock = threading.Lock()
        self._left: dict[str, Metric] = {}
        self._taken_at = 0.0

    def family(self, name: str) -> Metric | None:
        """The metric's values, collected for this export."""
        with self._lock:
            if name not in self._left or time.monotonic() - self._taken_at > LONGEST_EXPORT:
                self._left = {family.name: family for family in self._collector.collect()}
                self._taken_at = time.monotonic()
            return self._left.pop(name, None)


def _values(snapshots: _Snapshots, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        family = snapshots.family(name)
        for sample in family.samples if family is not None else ():
            if not sample.name.endswith("_created"):
                yield Observation(sample.value, dict(sample.labels))

    return observe
