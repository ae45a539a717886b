"""What Controller.register() returns, whatever the transport."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Registration(ABC):
    """User memory that the device reaches in place (`controller.register(buffer)`); a context
    manager, closed with its controller. On the home loop's thread.

    Attributes:
        address, nbytes: the registered memory.
        iova: its device address, or None where the device can't reach it (memory that a vfio-user
            peer can't be given): then I/O is bounced as for any other.
    """

    address: int
    nbytes: int
    iova: int | None

    @property
    def zero_copy(self) -> bool:
        """Does the device reach it in place?"""
        return self.iova is not None

    @abstractmethod
    def close(self) -> None:
        """Takes the memory from the device: new I/O on it is bounced; it stays mapped until the
        last command that uses it completed.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
