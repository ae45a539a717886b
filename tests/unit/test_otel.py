"""OpenTelemetry: spans of what takes long, and the metrics of Prometheus."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import nvme_async
from nvme_async.manager.metrics import ManagerCollector
from nvme_async.manager.otel import instrument

URI = "emulated:size=4MiB,block=512"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


async def test_open_and_the_managers_operations_are_spans(spans: InMemorySpanExporter) -> None:
    async with nvme_async.open(URI):
        pass
    async with nvme_async.Manager(workers=1) as manager:
        await manager.load(URI)
        await manager.reset(URI)
        with pytest.raises(nvme_async.NvmeError):
            await manager.load("vfio-user:/none/there.sock")
    found = [(span.name, span.attributes["uri"], span.status.is_ok) for span in spans.get_finished_spans()]
    assert found[0] == ("nvme_async.open", URI, True)
    names = [name for name, _, _ in found]
    assert "nvme_async.load" in names
    assert "nvme_async.reset" in names
    failed = [uri for name, uri, ok in found if not ok]
    assert failed == ["vfio-user:/none/there.sock"]


async def test_the_metrics_are_prometheus(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each export collects them once, not once for every metric."""
    collected = 0
    collect = ManagerCollector.collect

    def counted(self: ManagerCollector) -> Any:
        nonlocal collected
        collected += 1
        return collect(self)

    monkeypatch.setattr(ManagerCollector, "collect", counted)
    reader = InMemoryMetricReader()
    async with nvme_async.Manager(workers=1) as manager:
        ns = await manager.namespace(URI, 1)
        instrument(manager, MeterProvider([reader]).get_meter("test"))
        for lba in range(5):
            await ns.read(lba)
        collected = 0
        for exports in (1, 2):
            data = reader.get_metrics_data()
            assert collected == exports
    assert data is not None
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    metrics = {metric.name: metric for scope in scopes for metric in scope.metrics}
    (point,) = metrics["nvme_async_commands"].data.data_points
    assert (point.value, dict(point.attributes)) == (5, {"uri": URI})
    assert "nvme_async_outstanding" in metrics


def test_nothing_is_imported_by_itself() -> None:
    program = (
        "import asyncio, sys, nvme_async\n"
        f"async def main():\n    async with nvme_async.open({URI!r}): pass\n"
        "asyncio.run(main())\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
