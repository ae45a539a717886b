"""A controller's reports about itself, for layers above that continue after this process.

The driver knows nothing of successors. A subclass of Controller that does
(nvme_async.keepalive.kept) overrides these methods. Each does nothing here.
"""

from __future__ import annotations

from typing import Any


class LifecycleHooks:
    """Called by the driver on the controller's home loop, unless said otherwise."""

    def _brought_up(self) -> None:
        """The bring-up is over and the controller is ready."""

    def _changed(self, *, strictly: bool = False) -> None:
        """Something changed that a process which continues with this controller must know.

        That is: the lifecycle state, a queue pair, a namespace, or memory that the device can
            reach.
        strictly: the change must not be made if it cannot be recorded; then this raises
            OutOfDmaMemory.
        """

    def _became_unusable(self) -> None:
        """The controller is being closed, or has failed: no other process can continue with it."""

    async def _stop_background_work(self) -> None:
        """Ends tasks that use the queues. Called before they are deleted or given up."""

    def _cancel_background_work(self) -> None:
        """The same, where nothing can be touched any more: without waiting for their end."""

    async def _was_closed(self) -> None:
        """The controller is closed and its memory is released. Called once for every close(), in
        any state.
        """

    def _inspect_hooks(self) -> dict[str, Any]:
        """Keys that are added to Controller.inspect()."""
        return {}
