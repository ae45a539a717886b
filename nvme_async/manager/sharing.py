"""All devices of a manager, lent to worker processes: manager.share(path)."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Protocol

from nvme_async.errors import ConfigurationError
from nvme_async.sharing import Policy
from nvme_async.sharing.places import place_of


class Shareable(Protocol):
    """The part of a managed device that sharing needs."""

    async def share(self, sharing: ManagerShare | None) -> None: ...


class ManagerShare:
    """The result of `manager.share(path)`: an async context manager; await it instead if it
    should last as long as the manager.

    Attributes:
        path: of the directory with a socket for each device. policy: keyword arguments of
            controller.share().
        active: it has started and has not ended.
    """

    def __init__(
        self, path: str | os.PathLike[str], policy: dict[str, Any], register: Callable[[ManagerShare | None], Any]
    ) -> None:
        Policy.of(policy)
        self.path: str = os.path.abspath(os.fspath(path))
        self.policy = policy
        self.active: bool = False
        self._register = register

    def place(self, uri: str) -> str:
        """The socket of one device, by its canonical URI."""
        return place_of(uri, self.path, True)

    def __await__(self) -> Generator[Any, None, ManagerShare]:
        return self._start().__await__()

    async def __aenter__(self) -> ManagerShare:
        return await self._start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _start(self) -> ManagerShare:
        if self.active:
            return self
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{self.path}: {error.strerror or error}") from None
        await self._register(self)
        self.active = True
        return self

    async def close(self) -> None:
        """Takes all leases back; the devices continue. May be repeated."""
        if self.active:
            self.active = False
            await self._register(None)
