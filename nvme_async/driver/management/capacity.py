"""Capacity Management (Base 2.1, 5.1.3 and 8.1.4): Endurance Groups, and NVM Sets in them.

Deleting one deletes its namespaces with their data. I/O is held meanwhile, as for each command that
changes namespaces; handles of deleted namespaces end with InvalidNamespace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_async.driver.management.logs import read_log
from nvme_async.errors import ConfigurationError
from nvme_async.spec import commands
from nvme_async.spec.identify import (
    Ctratt,
    NvmSet,
    decode_endurance_groups,
    decode_nvm_sets,
)
from nvme_async.spec.logs import EnduranceGroup
from nvme_async.spec.opcodes import CapacityOperation, Cns, LogPage

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller


def _check(controller: Controller, what: Ctratt, name: str) -> None:
    if what not in controller.identify.attributes:
        raise ConfigurationError(f"{controller.uri}: the controller has no {name} (CTRATT)")


async def endurance_groups(controller: Controller) -> dict[int, EnduranceGroup]:
    """The log page of each Endurance Group, by its id; capacities are tegcap and uegcap."""
    _check(controller, Ctratt.ENDURANCE_GROUPS, "Endurance Groups")
    ids: list[int] = []
    while True:
        after = ids[-1] + 1 if ids else 0
        completion = await controller.admin(commands.identify(Cns.ENDURANCE_GROUPS, cns_specific_id=after))
        assert completion.data is not None
        more = [group for group in decode_endurance_groups(completion.data) if group >= after]
        ids += more
        if not more or ids[-1] == 0xFFFF:
            break
    return {
        group: EnduranceGroup.decode(
            await read_log(controller, LogPage.ENDURANCE_GROUP, EnduranceGroup.SIZE, lsi=group)
        )
        for group in ids
    }


async def nvm_sets(controller: Controller) -> dict[int, NvmSet]:
    """Each NVM Set by its id."""
    _check(controller, Ctratt.NVM_SETS, "NVM Sets")
    found: dict[int, NvmSet] = {}
    while True:
        after = max(found) + 1 if found else 0
        completion = await controller.admin(commands.identify(Cns.NVM_SETS, cns_specific_id=after))
        assert completion.data is not None
        more = {one.nvmsetid: one for one in decode_nvm_sets(completion.data) if one.nvmsetid >= after}
        found |= more
        if not more or max(found) == 0xFFFF:
            return found


async def _manage(controller: Controller, operation: CapacityOperation, element: int = 0, nbytes: int = 0) -> int:
    _check(controller, Ctratt.VARIABLE_CAPACITY, "Variable Capacity Management")
    return (await controller.admin(commands.capacity_management(operation, element, nbytes))).dw0 & 0xFFFF


async def create_endurance_group(controller: Controller, nbytes: int) -> int:
    """Creates an Endurance Group of at least nbytes and returns its id. CommandError if the
    controller hasn't so much left (UNVMCAP).
    """
    return await _manage(controller, CapacityOperation.CREATE_ENDURANCE_GROUP, 0, nbytes)


async def delete_endurance_group(controller: Controller, group: int) -> None:
    """Deletes an Endurance Group with its NVM Sets and their namespaces."""
    _check(controller, Ctratt.DELETE_ENDURANCE_GROUP, "deletion of Endurance Groups")
    await _manage(controller, CapacityOperation.DELETE_ENDURANCE_GROUP, group)


async def create_nvm_set(controller: Controller, group: int, nbytes: int) -> int:
    """Creates an NVM Set of at least nbytes in an Endurance Group and returns its id, for
    create_namespace(nvm_set=).
    """
    return await _manage(controller, CapacityOperation.CREATE_NVM_SET, group, nbytes)


async def delete_nvm_set(controller: Controller, nvm_set: int) -> None:
    """Deletes an NVM Set with its namespaces."""
    _check(controller, Ctratt.DELETE_NVM_SET, "deletion of NVM Sets")
    await _manage(controller, CapacityOperation.DELETE_NVM_SET, nvm_set)
