"""Commands as values: `Command` is a submission queue entry, and there is a builder for each
command.

    queue.submit(commands.read(nsid=1, lba=0, blocks=8))
    queue.submit(commands.identify(Cns.CONTROLLER))

Builders check their arguments and raise ValueError naming argument, value and limits. Addresses of
data are
not theirs: the queue pair fills PRPs when it knows the buffer, except where the PRP fields are the
command's
own arguments (queue creation, doorbell buffers; those have `data_length` 0). Counts are plain, not
zero-based: `blocks=1` is one block.
"""

from __future__ import annotations

from nvme_async.spec._command import SQE_SIZE, Command
from nvme_async.spec._commands_admin import (
    IDENTIFY_SIZE,
    abort,
    async_event_request,
    capacity_management,
    create_io_cq,
    create_io_sq,
    delete_io_cq,
    delete_io_sq,
    device_self_test,
    directive_receive,
    directive_send,
    doorbell_buffer_config,
    firmware_commit,
    firmware_image_download,
    format_nvm,
    get_features,
    get_lba_status,
    get_log_page,
    identify,
    keep_alive,
    lockdown,
    namespace_attachment,
    namespace_management,
    sanitize,
    security_receive,
    security_send,
    set_features,
    virtualization_management,
)
from nvme_async.spec._commands_nvm import (
    MAX_BLOCKS,
    MAX_COPY_RANGES,
    MAX_DSM_RANGES,
    compare,
    copy,
    copy_descriptors,
    dataset_management,
    dsm_ranges,
    flush,
    read,
    reservation_acquire,
    reservation_acquire_payload,
    reservation_register,
    reservation_register_payload,
    reservation_release,
    reservation_release_payload,
    reservation_report,
    verify,
    write,
    write_uncorrectable,
    write_zeroes,
)
from nvme_async.spec._commands_zns import zone_append, zone_management_receive, zone_management_send

__all__ = [
    "IDENTIFY_SIZE",
    "MAX_BLOCKS",
    "MAX_COPY_RANGES",
    "MAX_DSM_RANGES",
    "SQE_SIZE",
    "Command",
    "abort",
    "async_event_request",
    "capacity_management",
    "compare",
    "copy",
    "copy_descriptors",
    "create_io_cq",
    "create_io_sq",
    "dataset_management",
    "delete_io_cq",
    "delete_io_sq",
    "device_self_test",
    "directive_receive",
    "directive_send",
    "doorbell_buffer_config",
    "dsm_ranges",
    "firmware_commit",
    "firmware_image_download",
    "flush",
    "format_nvm",
    "get_features",
    "get_lba_status",
    "get_log_page",
    "identify",
    "keep_alive",
    "lockdown",
    "namespace_attachment",
    "namespace_management",
    "read",
    "reservation_acquire",
    "reservation_acquire_payload",
    "reservation_register",
    "reservation_register_payload",
    "reservation_release",
    "reservation_release_payload",
    "reservation_report",
    "sanitize",
    "security_receive",
    "security_send",
    "set_features",
    "verify",
    "virtualization_management",
    "write",
    "write_uncorrectable",
    "write_zeroes",
    "zone_append",
    "zone_management_receive",
    "zone_management_send",
]
