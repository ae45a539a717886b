"""A forked child owns none of its parent's open resources.

ext/forked.h removes the shared memory from the child: rings, doorbells, buffers. Other resources
that access a device or make the parent appear alive (sockets, VFIO's descriptors) are closed here,
in the child, right after the fork. Calls in the child are refused with the reason; the parent never
notices.
"""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack
from typing import Protocol

from nvme_async.errors import QueueShutdown


class Owner(Protocol):
    def forget_in_child(self) -> None:
        """In a forked child, where only the forking thread continues and every lock may be held
            forever: closes this process's descriptors,
        touches nothing else, and refuses from now on.
        """


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()


def watch(owner: Owner) -> None:
    """forget_in_child() is called in every child forked from now on, as long as the owner
    exists.
    """
    _owners.add(owner)


PARENTS = "belongs to the parent process that forked this one"


def belongs_to_parent(what: str) -> QueueShutdown:
    """In a child: the reason."""
    return QueueShutdown(f"{what} belongs to process {os.getppid()}, which forked this one; open it after the fork")


def _after_fork() -> None:
    with ExitStack() as stack:  # which calls them all, even if one of them raises
        for owner in _owners:
            stack.callback(owner.forget_in_child)
        _owners.clear()


os.register_at_fork(after_in_child=_after_fork)
