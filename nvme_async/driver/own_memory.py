"""Memory of the controller that the host maps: the results of Regions.cmb() and pmr(), for all
transports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from typing import Self


class ControllerMemory(ABC):
    """A Controller Memory Buffer (Base 2.0, 8.5) for data; a context manager, closed with its
    controller. On the home loop's thread.

    Attributes:
        buffer: all of it, as writable bytes; the controller's, so every access crosses the bus.
        nbytes: its size.
    """

    buffer: memoryview
    nbytes: int

    @abstractmethod
    def close(self) -> None:
        """New I/O on it uses bounce pages. It stays mapped as long as views of it exist."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PmrHealth(IntEnum):
    """PMRSTS.HSTS (Base 2.0, 3.1.3.24)."""

    NORMAL = 0
    RESTORE_ERROR = 1
    """The content may be that of no earlier moment: the last one could not be restored."""
    READ_ONLY = 2
    UNRELIABLE = 3
    """Reads may return wrong data, and writes may be lost."""


class PersistentMemory(ABC):
    """A Persistent Memory Region (Base 2.0, 8.14); a context manager, closed with its controller.
    On the home loop's thread.

    Attributes:
        buffer: all of it, as bytes; read-only if the region is.
        nbytes: its size.
        elasticity_nbytes: what the controller takes at full speed before it slows writers down
            (PMREBS); 0 = not reported.
        bytes_per_second: at which it takes writes permanently (PMRSWTP); 0 = not reported.
    """

    buffer: memoryview
    nbytes: int
    elasticity_nbytes: int
    bytes_per_second: int

    @abstractmethod
    async def health(self) -> PmrHealth:
        """DeviceError if the region reports an error (PMRSTS.ERR), or isn't ready any more."""

    @abstractmethod
    async def barrier(self) -> None:
        """Everything written to `buffer` before this call is durable afterwards, by the means
        that the controller has (PMRCAP.PMRWBM). DeviceError if the region is not healthy, so that
        it may not be.
        """

    @abstractmethod
    def close(self) -> None:
        """It stays mapped as long as views of it exist, and enabled."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
