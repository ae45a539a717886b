"""OpenTelemetry spans around what takes long: nothing is imported, and nothing happens, unless the
application uses OpenTelemetry itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def span(name: str, **attributes: str | int | float | bool) -> Iterator[None]:
    """A span `name` of the tracer nvme_async; an exception that passes is recorded in it."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        yield
        return
    with trace.get_tracer("nvme_async").start_as_current_span(name, attributes=attributes):
        yield
