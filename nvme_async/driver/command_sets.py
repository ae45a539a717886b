"""Which I/O command sets a controller runs with: CC.CSS before it is enabled, and the I/O Command
Set Profile afterwards (Base 2.0, 3.1.3.5 and 5.27.1.20).

A controller that offers several runs with all of them, so that its zoned and key value namespaces
can be used in addition to those of the NVM command set; with CC.CSS=000b their commands are Invalid
Opcode.
"""

from __future__ import annotations

from nvme_async.device.quirks import Quirk
from nvme_async.driver.context import ControllerContext
from nvme_async.spec import commands
from nvme_async.spec.identify import CommandSets
from nvme_async.spec.opcodes import Cns, Feature
from nvme_async.spec.registers import Cap

_THIS_CONTROLLER = 0xFFFF
_NVM = 1 << 0


def to_try(cap: Cap) -> tuple[bool, ...]:
    """CC.CSS in the order to try: True stands for 110b, all supported sets; False for the NVM
    command set alone.
    """
    if cap.multiple_command_sets:
        return (True, False) if cap.nvm_command_set else (True,)
    return (False,)


def best(combinations: tuple[int, ...], enabled: int) -> int:
    """The index of the combination with the most command sets, of those that have the NVM one if
    any has. `enabled` if no other has more.
    """

    def worth(index: int) -> tuple[bool, int]:
        return bool(combinations[index] & _NVM), combinations[index].bit_count()

    used = combinations.index(0) if 0 in combinations else len(combinations)
    if not used:
        return enabled
    chosen = max(range(used), key=worth)
    return enabled if enabled < used and worth(enabled) >= worth(chosen) else chosen


async def choose(controller: ControllerContext) -> None:
    """Makes the controller enable the combination with the most command sets. Does nothing if
    CC.CSS isn't 110b or there is only one.
    """
    if not controller.transport.all_command_sets or Quirk.IDENTIFY_CNS in controller.quirks:
        return
    submit = controller._submit_admin
    completion = await submit(commands.identify(Cns.COMMAND_SETS, cntid=_THIS_CONTROLLER))
    assert completion.data is not None
    combinations = CommandSets.decode(completion.data).iocsc
    if sum(map(bool, combinations)) < 2:
        return
    enabled = (await submit(commands.get_features(Feature.COMMAND_SET_PROFILE))).dw0 & 0x1FF
    chosen = best(combinations, enabled)
    if chosen != enabled:
        await submit(commands.set_features(Feature.COMMAND_SET_PROFILE, chosen))
