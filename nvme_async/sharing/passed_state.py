"""What a worker says about its queue pairs when it stands still; the rest is in its pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, TypeVar

import attrs

from nvme_async.errors import InvalidSavedState
from nvme_async.keepalive import state as saved
from nvme_async.keepalive.state import QueueState, RegistrationState

T = TypeVar("T")


@attrs.define(kw_only=True)
class PassedState:
    """Attributes:
    pool_id: of the only pool. life: the epoch of the queues.
    max_transfer: bytes that one command of any of them can transfer at most.
    queues: as in the saved state of a controller.
    registrations: mappings of the worker's own memory, to be unmapped once no command uses them.
    unverified: the namespaces must be read again before I/O; decided by the successor.
    """

    pool_id: str
    life: int
    max_transfer: int
    queues: list[QueueState]
    registrations: list[RegistrationState]
    unverified: bool = False
    unsettled: tuple[QueueState, ...] = ()
    sharing: Mapping[str, Any] = attrs.field(factory=dict)
    format: int = saved.FORMAT

    @property
    def vectors(self) -> int:
        return 1 + max((queue.vector for queue in self.queues), default=0)

    def encode(self) -> dict[str, Any]:
        """In JSON's types; of() is the inverse."""
        without = attrs.filters.exclude("extra")
        return {
            "pool_id": self.pool_id,
            "life": self.life,
            "max_transfer": self.max_transfer,
            "queues": [attrs.asdict(queue, filter=without) for queue in self.queues],
            "registrations": [attrs.asdict(one, filter=without) for one in self.registrations],
        }

    @classmethod
    def of(cls, plain: Any) -> Self:
        """InvalidSavedState for anything else. Fields of newer releases are ignored."""
        try:
            return cls(
                pool_id=str(plain["pool_id"]),
                life=int(plain["life"]),
                max_transfer=int(plain["max_transfer"]),
                queues=[_known(QueueState, one) for one in plain["queues"]],
                registrations=[_known(RegistrationState, one) for one in plain["registrations"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidSavedState(f"the predecessor's description of its queues is invalid: {error!r}") from None


def _known(cls: type[T], plain: dict[str, Any]) -> T:
    fields = {field.name for field in attrs.fields(cls)} - {"extra"}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in plain.items() if name in fields})
