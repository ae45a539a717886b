"""The manager's metrics for Prometheus. Needs prometheus-client: nvme_async[metrics].

    prometheus_client.REGISTRY.register(ManagerCollector(manager))
    prometheus_client.start_http_server(9100)

Everything is read when Prometheus scrapes, from existing counters; only latencies have a cost, and
require `Manager(latency=True)`. When a driver is replaced, its counters start at zero again, which
Prometheus handles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from nvme_async.errors import ConfigurationError
from nvme_async.keepalive import phases

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ConfigurationError("metrics need prometheus-client: install nvme_async[metrics]") from error

STATES = ("loading", "ready", "servicing", "failed", "gone", "closed")

# Seconds. Three per decade from 1 µs, for fast media, to 10 s, for timeouts.
BUCKETS = (*(step * 10.0**decade for decade in range(-6, 1) for step in (1, 2, 5)), 10.0)

# Sums over a device's I/O queue pairs: its key in inspect(), its name, its meaning.
_QUEUE_COUNTERS = (
    (("cq", "reaped"), "commands", "I/O commands completed"),
    (("errors",), "queue_errors", "I/O commands whose waiter received an error"),
    (("interrupts",), "interrupts", "Interrupts taken"),
    (("spins",), "spins", "Waits that polled instead of sleeping"),
    (("eager",), "eager", "Commands that completed without suspending their task"),
    (("full",), "queue_full", "Commands that had to wait for a command id"),
    (("bounced",), "bounced", "Commands whose data were copied through bounce pages"),
    (("sq", "doorbells"), "sq_doorbells", "Submission doorbells rung as register writes"),
)
_QUEUE_GAUGES = (("outstanding", "Commands with the controller"), ("waiting", "Commands that wait for a command id"))
_DEVICE_COUNTERS = (
    ("servicings", "Drivers replaced"),
    ("repairs", "Drivers replaced because they failed"),
    ("retried_calls", "Calls repeated because their driver ended"),
)
_CONTROLLER_COUNTERS = (
    ("resets", "Controller resets"),
    ("timeouts", "Commands that took too long"),
    ("aborts", "Abort commands sent"),
    ("events", "Asynchronous events received"),
)

_LEASE_METRICS = (
    ("queue_pairs", "I/O queue pairs of a worker process", GaugeMetricFamily),
    ("in_flight", "Commands of a worker process with the controller", GaugeMetricFamily),
    ("commands", "I/O commands of a worker process completed", CounterMetricFamily),
    ("pool_bytes", "Memory of a worker process that the controller can access", GaugeMetricFamily),
    ("age_seconds", "Time since a worker process got its lease", GaugeMetricFamily),
)
_LEASE_KEYS = {"age_seconds": "age"}


def _dig(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _phases() -> HistogramMetricFamily:
    """Phases of all servicings of this process; see nvme_async.keepalive.phases."""
    family = HistogramMetricFamily(
        "nvme_async_servicing_seconds", "Duration of the phases of a servicing", labels=["device", "phase"]
    )
    for (uri, phase), (counts, total) in phases.recorded().items():
        buckets, so_far = [], 0
        for bound, count in zip((*map(repr, phases.BUCKETS), "+Inf"), counts, strict=True):
            so_far += count
            buckets.append((bound, so_far))
        family.add_metric([uri, phase], buckets, sum_value=total)
    return family


class Inspected(Protocol):
    """The part of a manager that its metrics need."""

    def inspect(self) -> dict[str, Any]: ...


class ManagerCollector(Collector):
    """A prometheus_client collector of one manager; from any thread."""

    def __init__(self, manager: Inspected) -> None:
        self._manager = manager

    def collect(self) -> Iterator[Metric]:
        state = self._manager.inspect()
        devices: dict[str, dict[str, Any]] = state["devices"]
        yield from _devices(devices)
        yield from _controllers({uri: device["controller"] for uri, device in devices.items() if device["controller"]})
        yield _phases()
        cpu = CounterMetricFamily("nvme_async_worker_cpu_seconds", "CPU time of the worker threads", labels=["worker"])
        for worker in state["workers"]:
            cpu.add_metric([worker["name"]], worker["cpu_seconds"])
        yield cpu


def _devices(devices: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "nvme_async_device_state", "1 for the state that a device is in", labels=["uri", "state"]
    )
    waiting = GaugeMetricFamily("nvme_async_waiting_calls", "Calls that wait for a device to come back", labels=["uri"])
    for uri, device in devices.items():
        for state in STATES:
            states.add_metric([uri, state], float(device["state"] == state))
        waiting.add_metric([uri], device["waiting_calls"])
    yield states
    yield waiting
    for name, text in _DEVICE_COUNTERS:
        counter = CounterMetricFamily(f"nvme_async_{name}", text, labels=["uri"])
        for uri, device in devices.items():
            counter.add_metric([uri], device[name])
        yield counter


def _controllers(controllers: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    for name, text in _CONTROLLER_COUNTERS:
        counter = CounterMetricFamily(f"nvme_async_{name}", text, labels=["uri"])
        for uri, controller in controllers.items():
            counter.add_metric([uri], controller[name])
        yield counter
    for path, name, text in _QUEUE_COUNTERS:
        counter = CounterMetricFamily(f"nvme_async_{name}", text, labels=["uri"])
        for uri, controller in controllers.items():
            counter.add_metric([uri], sum(_dig(queue, path) for queue in _open_queues(controller)))
        yield counter
    for name, text in _QUEUE_GAUGES:
        gauge = GaugeMetricFamily(f"nvme_async_{name}", text, labels=["uri"])
        for uri, controller in controllers.items():
            gauge.add_metric([uri], sum(queue[name] for queue in _open_queues(controller)))
        yield gauge
    errors = CounterMetricFamily(
        "nvme_async_errors", "Commands completed with an error, by status", labels=["uri", "status"]
    )
    pools = GaugeMetricFamily(
        "nvme_async_pool_bytes", "Memory that the controller can access", labels=["uri", "pool", "kind"]
    )
    sizes = GaugeMetricFamily("nvme_async_namespace_bytes", "Size of a namespace", labels=["uri", "nsid"])
    latency = HistogramMetricFamily(
        "nvme_async_latency_seconds", "From submission to completion of an I/O command", labels=["uri"]
    )
    for uri, controller in controllers.items():
        for status, count in controller["errors"].items():
            errors.add_metric([uri, status], count)
        for pool in (controller["memory"] or {}).get("pools", ()):
            pools.add_metric([uri, pool["name"], "used"], pool["used_bytes"])
            pools.add_metric([uri, pool["name"], "free"], pool["free_bytes"])
        for namespace in controller["namespaces"]:
            sizes.add_metric([uri, str(namespace["nsid"])], namespace["nbytes"])
        recorded = [queue["latency"] for queue in _open_queues(controller) if queue.get("latency")]
        if recorded:
            buckets, total = _histogram(recorded)
            latency.add_metric([uri], buckets, total)
    yield from (errors, pools, sizes, latency)
    yield from _paths(controllers)
    yield from _leases(controllers)


def _paths(controllers: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    """Of controllers that are reached by several addresses."""
    labels = ["uri", "path"]
    ready = GaugeMetricFamily("nvme_async_path_ready", "1 for a path that takes commands", labels=labels)
    sent = CounterMetricFamily("nvme_async_path_commands", "Calls that were sent over a path", labels=labels)
    failovers = CounterMetricFamily(
        "nvme_async_path_failovers", "Calls that were sent again on another path", labels=labels
    )
    for uri, controller in controllers.items():
        for path in controller.get("paths", ()):
            ready.add_metric([uri, path["uri"]], float(path["state"] == "ready"))
            sent.add_metric([uri, path["uri"]], path["commands"])
            failovers.add_metric([uri, path["uri"]], path["failovers"])
    yield from (ready, sent, failovers)


def _leases(controllers: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    """Of worker processes (nvme_async.sharing), as each has said last."""
    labels = ["uri", "pid", "command"]
    for name, text, kind in _LEASE_METRICS:
        family = kind(f"nvme_async_lease_{name}", text, labels=labels)
        for uri, controller in controllers.items():
            for lease in controller.get("leases", ()):
                value = len(lease["queues"]) if name == "queue_pairs" else lease[_LEASE_KEYS.get(name, name)]
                family.add_metric([uri, str(lease["pid"]), lease["command"]], value)
        yield family


def _open_queues(controller: dict[str, Any]) -> list[dict[str, Any]]:
    return [queue for queue in controller["io_queues"] if not queue.get("closed")]


def _histogram(recorded: list[dict[str, Any]]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts up to each bound, and the sum in seconds. The queue pairs' own buckets are
    less than 2 % wide.
    """
    bins: dict[int, int] = {}
    for one in recorded:
        for nanoseconds, count in one["bins"].items():
            bins[nanoseconds] = bins.get(nanoseconds, 0) + count
    ordered = sorted(bins.items())
    cumulative: list[tuple[str, float]] = []
    count = at = 0
    for bound in BUCKETS:
        while at < len(ordered) and ordered[at][0] <= bound * 1e9:
            count += ordered[at][1]
            at += 1
        cumulative.append((repr(bound), count))
    cumulative.append(("+Inf", sum(bins.values())))
    return cumulative, sum(one["sum"] for one in recorded) / 1e9


def exposition(manager: Inspected) -> bytes:
    """The text that Prometheus scrapes."""
    registry = CollectorRegistry()
    registry.register(ManagerCollector(manager))
    return generate_latest(registry)
