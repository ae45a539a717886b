"""The manager's metrics for OpenTelemetry, from the same source as Prometheus'."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nvme_async.errors import ConfigurationError
from nvme_async.manager.metrics import Inspected, ManagerCollector

try:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter
except ImportError as error:
    raise ConfigurationError("OpenTelemetry is not installed: install nvme_async[otel]") from error


def instrument(manager: Inspected, meter: Meter | None = None) -> None:
    """Offers the counters and gauges of `manager.metrics()` to OpenTelemetry, under the same names.

    meter: by default that of the global provider, which the application has set up. Histograms are
    Prometheus' alone: their buckets are the driver's, and OpenTelemetry takes only single values.
    """
    chosen = meter if meter is not None else get_meter("nvme_async")
    collector = ManagerCollector(manager)
    for family in list(collector.collect()):
        name, text = family.name, family.documentation
        if family.type == "counter":
            chosen.create_observable_counter(name, [_values(collector, name)], description=text)
        elif family.type == "gauge":
            chosen.create_observable_gauge(name, [_values(collector, name)], description=text)


def _values(collector: ManagerCollector, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for family in collector.collect():
            if family.name == name:
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        yield Observation(sample.value, dict(sample.labels))

    return observe
