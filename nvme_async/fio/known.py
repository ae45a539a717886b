"""fio's other options: those accepted, because they ask for what is so anyway, and those refused by
name.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from nvme_async.errors import ConfigurationError
from nvme_async.fio.parsers import boolean


@attrs.frozen
class Accepted:
    """An option of job files that changes nothing here. `because` says why another value is
    refused.
    """

    because: str = ""
    allowed: Callable[[str], bool] = lambda text: True

    def check(self, text: str) -> None:
        if not self.allowed(text):
            raise ConfigurationError(f"not supported here: {self.because}")


ACCEPTED = {
    "direct": Accepted("there is no page cache, I/O is always direct", boolean),
    "buffered": Accepted("there is no page cache, I/O is always direct", lambda text: not boolean(text)),
    "thread": Accepted("jobs are always threads", boolean),
    "invalidate": Accepted(),
    "create_serialize": Accepted(),
    "create_fsync": Accepted(),
    "create_on_open": Accepted(),
    "fallocate": Accepted(),
    "allow_file_create": Accepted(),
    "overwrite": Accepted(),
    "scramble_buffers": Accepted(),
    "disk_util": Accepted("the kernel has no statistics of this device", lambda text: not boolean(text)),
    "mem": Accepted(),
    "iomem": Accepted(),
    "clocksource": Accepted("the clock is CLOCK_MONOTONIC", lambda text: text == "clock_gettime"),
    "group_id": Accepted(),
}

KNOWN_TO_FIO = frozenset(
    """
    wait_for lockfile directory filename_format unique_filename opendir bs_unaligned bsunaligned
    blocksize_unaligned ignore_error rw_sequencer serialize_overlap io_submit_mode fill_device fill_fs
    filesize file_append offset_align random_generator percentage_random nrfiles file_service_type
    openfiles fadvise_hint fadvise write_barrier sync_file_range atomic verify_offset header_offset
    verify_dump verify_async verify_async_cpus experimental_verify verify_state_load verify_state_save
    verify_write_sequence verify_header_seed verify_table trim_percentage trim_verify_zero trim_backlog
    trim_backlog_batch write_iolog read_iolog read_iolog_chunked replay_no_stall replay_redirect
    replay_scale replay_align replay_time_scale replay_skip merge_blktrace_file merge_blktrace_scalars
    merge_blktrace_iters exec_prerun exec_postrun ioscheduler zonemode zonesize zone_size zonecapacity
    zone_capacity zonerange zone_range zoneskip zone_skip read_beyond_wp max_open_zones job_max_open_zones
    ignore_zone_limits zone_reset_threshold zone_reset_frequency lockmem nice prio prioclass prio_split
    cmdprio cmdprio_percentage cmdprio_class cmdprio_bssplit thinkcycles thinktime_blocks_type
    thinktime_iotime rate_min ratemin rate_cycle ratecycle rate_iops_min rate_ignore_thinktime max_latency
    latency_target latency_window latency_percentile latency_run write_hint create_only
    allow_mounted_write pre_read cpumask cpus_allowed_policy numa_cpu_nodes numa_mem_policy unlink
    unlink_each_loop exit_what log_entries log_hist_msec log_hist_coarseness write_hist_log log_prio
    log_window_value log_compression log_compression_cpus log_store_compressed log_unix_epoch
    log_alternate_epoch log_alternate_epoch_clock_id log_issue_time block_error_percentiles stats
    buffer_compress_percentage buffer_compress_chunk dedupe_percentage dedupe_mode
    dedupe_working_set_percentage dedupe_global slat_percentiles significant_figures gtod_cpu
    unified_rw_reporting continue_on_error error_dump profile cgroup cgroup_nodelete cgroup_weight uid gid
    kb_base unit_base hugepage-size flow_id flow flow_watermark flow_sleep fdp fdp_pli plid_select
    dp_scheme ss_check_interval steadystate_check_interval num_range userspace_reap hipri registerfiles
    fixedbufs sqthread_poll sqthread_poll_cpu nonvectored uncached nowait cmd_type hostname port protocol
    startdelay_range
    """.split()  # noqa: SIM905
)
