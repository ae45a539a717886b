"""The active namespaces of a controller by their numbers."""

from __future__ import annotations

from nvme_async.driver.namespace import Namespace
from nvme_async.errors import NoSuchNamespace


class ActiveNamespaces(dict[int, Namespace]):
    """{nsid: Namespace}. A number that is not active raises NoSuchNamespace, a KeyError that
    lists the active ones.
    """

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri

    def __missing__(self, nsid: object) -> Namespace:
        there = ", ".join(map(str, sorted(self))) or "none"
        raise NoSuchNamespace(f"namespace {nsid!r} is not active on {self._uri}; active: {there}")
