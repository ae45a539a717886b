"""Taking an NVMe function from the kernel's driver, and returning it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import attrs

from nvme_async.device.patience import patiently
from nvme_async.device.pci import VFIO_DRIVER, Function, Record, System, driver_of, function_at, text
from nvme_async.device.pci_use import Use, openers, uses
from nvme_async.device.vfio_container import offenders
from nvme_async.errors import DeviceError

KERNEL_DRIVER = "nvme"


@attrs.frozen
class Outcome:
    """The outcome of bind() or unbind().

    Attributes:
        function: as it is now. before: the driver it had. changed: False if there was nothing to
            do.
        broken: the uses that were broken (with force).
        hints: remaining obstacles to using it.
    """

    function: Function
    before: str | None
    changed: bool
    broken: tuple[Use, ...] = ()
    hints: tuple[str, ...] = ()


def refusal(function: Function, found: Sequence[Use]) -> DeviceError:
    """Why a drive can't be taken."""
    reasons = "; ".join(str(use) for use in found)
    return DeviceError(f"{function.uri} stays with {function.driver}: {reasons} (--force would break that)")


def bind(
    system: System, address: str, *, driver: str = VFIO_DRIVER, force: bool = False, owner: int | None = None
) -> Outcome:
    """Give a function to vfio-pci, so that a process can drive it. Needs root; blocks while the
    drivers change.

    Refuses with DeviceError while any of its namespaces is in use; `force` takes it nevertheless,
    and the outcome lists what that broke. Its previous driver is remembered for unbind(). `owner`
    is a uid that becomes the owner of the group's node, so that this user's processes can open it
    without root.
    """
    function = function_at(system, address)
    found: tuple[Use, ...] = ()
    changed = function.driver != driver
    if changed:
        found = tuple(uses(system, function))
        if found and not force:
            raise refusal(function, found)
        if function.iommu_group is None:
            raise DeviceError(
                f"{function.uri} has no IOMMU group, so {driver} can't protect memory from it: the IOMMU is off;"
                " `nvme-async doctor` shows how to turn it on"
            )
        _have_driver(system, driver)
        override = text(system.function_path(address) / "driver_override") or ""
        if override == "(null)":
            override = ""
        system.remember(
            address,
            Record(function.driver, override, function.model, function.serial, function.firmware),
        )
        _move(system, function, driver)
    if owner is not None:
        node = _node(system, function)  # which udev makes, soon
        try:
            patiently(f"changing the owner of {node} to user {owner}", lambda: os.chown(node, owner, -1))
        except OSError as error:
            raise DeviceError(
                f"{function.uri}: the owner of {node} can't be changed to user {owner}: {error.strerror}"
            ) from error
    now = function_at(system, address)
    return Outcome(now, function.driver, changed, found, tuple(_hints(system, now)))


def unbind(system: System, address: str, *, driver: str | None = None) -> Outcome:
    """Return a function to the driver that bind() took it from (`nvme` if none is remembered).
    Needs root.

    Refuses while a process has the function open: the kernel would wait for that process, for as
        long as it
    takes.
    """
    function = function_at(system, address)
    record = system.record(address) or Record(KERNEL_DRIVER)
    wanted = driver or record.driver or KERNEL_DRIVER
    if function.driver == wanted:
        system.forget(address)
        return Outcome(function, wanted, False)
    if function.driver == VFIO_DRIVER and function.iommu_group is not None:
        node = system.dev / "vfio" / str(function.iommu_group)
        if system.open_error(node, os.O_RDWR) == errno.EBUSY:
            holders = ", ".join(openers(system, node)) or "a process"
            raise DeviceError(f"{function.uri} is in use by {holders}: it has {node} open. Close it first")
    _have_driver(system, wanted)
    _move(system, function, wanted, override=record.driver_override)
    system.forget(address)
    return Outcome(function_at(system, address), function.driver, True)


def _have_driver(system: System, driver: str) -> None:
    if system.driver_path(driver).is_dir():
        return
    problem = system.modprobe(driver)
    if not system.driver_path(driver).is_dir():
        raise DeviceError(f"the kernel has no driver {driver}: `modprobe {driver}`{': ' if problem else ''}{problem}")


def _move(system: System, function: Function, driver: str, override: str | None = None) -> None:
    """Unbind and probe with the override set to `driver`, which then stays, or becomes `override`.

    If the new driver does not take the function, the old one gets it back.
    """
    path = system.function_path(function.address)
    if function.driver:
        system.write(path / "driver" / "unbind", function.address)
    try:
        system.write(path / "driver_override", f"{driver}\n")
        system.write(system.sys / "bus/pci/drivers_probe", function.address)
        got = driver_of(system, function.address)
        if got != driver:
            raise DeviceError(f"{driver} did not take {function.uri} (bound to {got or 'no driver'}; see dmesg)")
    except DeviceError:
        system.write(path / "driver_override", f"{function.driver or ''}\n")
        system.write(system.sys / "bus/pci/drivers_probe", function.address)
        system.write(path / "driver_override", "\n")
        raise
    if override is not None:
        system.write(path / "driver_override", f"{override}\n")


def _node(system: System, function: Function) -> str:
    return str(system.dev / "vfio" / str(function.iommu_group))


def _hints(system: System, function: Function) -> list[str]:
    """The reasons why a bound function can't be opened."""
    if function.driver != VFIO_DRIVER or function.iommu_group is None:
        return []
    return [
        f"IOMMU group {function.iommu_group} also holds {other}, which is bound to {driver}: no device "
        "in the group can be"
        " used until it is bound to vfio-pci, or to no driver"
        for other, driver in offenders(function.iommu_group, system.root)
    ]
