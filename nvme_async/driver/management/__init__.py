"""Management of a controller and its namespaces: coroutines that wait for the end, report
progress, and can be cancelled if the specification allows it.

    from nvme_async import management
    await management.format_namespace(controller, 1, block_size=4096, progress=print)
    nsid = await management.create_namespace(controller, nbytes=1 << 30)

Each uses controller.admin(), so that affected I/O is held meanwhile and Identify is read again
afterwards (docs/commands-with-effects.md). `progress` is called with a fraction from 0.0 to 1.0, on
the caller's loop. They raise CommandError and its subclasses if the controller refuses, and
ManagementError if it executed the operation without success.
"""

from nvme_async.driver.management.boot import (
    BootPartitions,
    BootProtection,
    activate_boot_partition,
    boot_partition_protection,
    boot_partitions,
    protect_boot_partition,
    read_boot_partition,
    write_boot_partition,
)
from nvme_async.driver.management.capacity import (
    create_endurance_group,
    create_nvm_set,
    delete_endurance_group,
    delete_nvm_set,
    endurance_groups,
    nvm_sets,
)
from nvme_async.driver.management.firmware import (
    Activation,
    commit_firmware,
    download_firmware,
    update_firmware,
)
from nvme_async.driver.management.formats import find_format, format_namespace
from nvme_async.driver.management.lockdown import LockdownScope, lock_down, locked_down
from nvme_async.driver.management.logs import (
    persistent_event_bytes,
    persistent_event_log,
    read_log,
    read_typed_log,
    telemetry_log,
)
from nvme_async.driver.management.media import lba_status, sanitize, self_test
from nvme_async.driver.management.namespaces import (
    attach_namespace,
    create_namespace,
    delete_namespace,
    detach_namespace,
)
from nvme_async.driver.management.security import (
    discover_security,
    receive_security,
    security_protocols,
    send_security,
)
from nvme_async.driver.management.virtualization import (
    allocate_resources,
    assign_resources,
    primary_capabilities,
    secondary_controllers,
    set_secondary_online,
)
from nvme_async.driver.management.waiting import Progress

__all__ = [
    "Activation",
    "BootPartitions",
    "BootProtection",
    "LockdownScope",
    "Progress",
    "activate_boot_partition",
    "allocate_resources",
    "assign_resources",
    "attach_namespace",
    "boot_partition_protection",
    "boot_partitions",
    "commit_firmware",
    "create_endurance_group",
    "create_namespace",
    "create_nvm_set",
    "delete_endurance_group",
    "delete_namespace",
    "delete_nvm_set",
    "detach_namespace",
    "discover_security",
    "download_firmware",
    "endurance_groups",
    "find_format",
    "format_namespace",
    "lba_status",
    "lock_down",
    "locked_down",
    "nvm_sets",
    "persistent_event_bytes",
    "persistent_event_log",
    "primary_capabilities",
    "protect_boot_partition",
    "read_boot_partition",
    "read_log",
    "read_typed_log",
    "receive_security",
    "sanitize",
    "secondary_controllers",
    "security_protocols",
    "self_test",
    "send_security",
    "set_secondary_online",
    "telemetry_log",
    "update_firmware",
    "write_boot_partition",
]
