"""The result of Controller.register(), for all transports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Registration(ABC):
    """User memory that the device accesses in place (`controller.register(buffer)`); a context
    manager, closed with its controller. On the home loop's thread.

    Attributes:
        address, nbytes: the registered memory.
        iova: its device address, or None if the device can't access it (memory that can't be passed
            to a vfio-user peer): then I/O uses bounce pages as for other memory.
    """

    address: int
    nbytes: int
    iova: int | None

    @property
    def zero_copy(self) -> bool:
        """Does the device access it in place?"""
        return self.iova is not None

    @abstractmethod
    def close(self) -> None:
        """Ends the registration: new I/O on it uses bounce pages; it stays mapped until the last
        command that uses it completed.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
