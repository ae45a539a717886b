"""The memory of a controller that the host maps, as its applications open it."""

from __future__ import annotations

from typing import Protocol

from nvme_async.driver.own_memory import ControllerMemory, PersistentMemory
from nvme_async.driver.transport import Transport


class _Mapped(Protocol):
    def _reachable(self) -> Transport: ...


class Regions:
    """`controller.regions`. ConfigurationError where the transport has no registers of a PCI
    function.
    """

    def __init__(self, controller: _Mapped) -> None:
        self._controller = controller

    async def cmb(self) -> ControllerMemory:
        """Maps the Controller Memory Buffer (Base 2.0, 8.5), for data that needn't cross the bus
        between two commands: reads and writes of its buffer transfer in place.

        On the home loop. A second call returns the same object. With the option cmb_queues it is
        what the queues leave.
        After a reset it is enabled again, and its content is undefined. ConfigurationError if the
        controller has none (CAP.CMBS, CMBSZ.RDS and WDS), or commands still use one that was
        closed; DeviceError if it can't be mapped.
        """
        return await self._controller._reachable().open_cmb()

    async def pmr(self, *, healthy: bool = True) -> PersistentMemory:
        """Enables and maps the Persistent Memory Region (Base 2.0, 8.14), whose content outlives
        resets and power failures.

        On the home loop; takes up to PMRCAP.PMRTO. A second call returns the same object. healthy:
        DeviceError if PMRSTS says otherwise; False: opens it anyway. ConfigurationError if the
        controller has none (CAP.PMRS); DeviceError if it can't be mapped, or reports an error;
        ControllerTimeout if it doesn't become ready.
        """
        return await self._controller._reachable().open_pmr(healthy=healthy)
