"""fio's other options: those accepted because they change nothing here, and those refused by
name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def _is_boolean(text: str) -> bool:
    boolean(text)  # raises
    return True


def _none(text: str) -> bool:
    return text in ("none", "0", "no", "false", "")


NO_CACHE = "buffered I/O is not used: this program bypasses the page cache and measures the device, not memory"


def cache_note(texts: Mapping[str, str]) -> str | None:
    """What is said of jobs that ask for the page cache (direct=0, buffered=1), which is not
    there.
    """
    for name, asks in (("direct", lambda text: not boolean(text)), ("buffered", boolean)):
        if name in texts and asks(texts[name]):
            return f"{name}={texts[name]}: {NO_CACHE}"
    return None


ON_DEVICE = Accepted()  # what a regular file has, and a device has not

ACCEPTED = {
    "direct": Accepted(NO_CACHE, _is_boolean),  # cache_note() says so where a job asks for one
    "buffered": Accepted(NO_CACHE, _is_boolean),
    "disable_util": ON_DEVICE,
    "disk_util": Accepted("the kernel has no statistics of this device", lambda text: not boolean(text)),
    "clocksource": Accepted(
        "the clock is CLOCK_MONOTONIC", lambda text: text in ("clock_gettime", "cpu", "gettimeofday")
    ),
    "verify_state_load": Accepted("there is no saved state; verify_only repeats what a job wrote", _none),
    "experimental_verify": Accepted(),  # what a job wrote is known without a log of it
    "header_offset": Accepted("a header begins its interval", _none),
    "verify_offset": Accepted("a header begins its interval", _none),
    "io_submit_mode": Accepted("the coroutine that awaits an I/O submits it", lambda text: text == "inline"),
    "continue_on_error": Accepted("the first error ends a job", _none),
    "ignore_error": Accepted("the first error ends a job", _none),
    "pre_read": ON_DEVICE,  # into the page cache
    "ioscheduler": ON_DEVICE,  # the kernel's
    "kb_base": Accepted("sizes are powers of 1024", lambda text: text == "1024"),
    "unit_base": Accepted("results are in bytes", lambda text: text in ("0", "8", "auto", "bytes")),
    "significant_figures": Accepted("results have four", lambda text: text == "4"),
    "ignore_zone_limits": ON_DEVICE,
    "write_hint": Accepted("no lifetime is passed on", _none),
    "rw_sequencer": Accepted("random offsets are drawn for each I/O", lambda text: text == "random"),
    "dedupe_percentage": Accepted("data are random throughout", _none),
    "buffer_compress_percentage": Accepted("data are random throughout", _none),
    "trim_percentage": Accepted("rw=trimwrite and rw=randtrimwrite trim", _none),
    "trim_backlog": Accepted("rw=trimwrite and rw=randtrimwrite trim", _none),
    "log_store_compressed": Accepted("log files are plain text", _none),
    "log_window_value": Accepted("log_max_value logs maxima", lambda text: text in ("avg", "average")),
    "log_prio": Accepted("an await has no priority", _none),
    "log_issue_time": Accepted("a line's time is that of the completion", _none),
    "block_error_percentiles": Accepted("the first error ends a job", _none),
    "error_dump": Accepted(),
    "stats": Accepted("a job without results is not run", boolean),
    "profile": Accepted("profiles are not supported", _none),
    "lockfile": Accepted("a device has only one owner", _none),
    "numa_mem_policy": Accepted("the kernel places memory for devices", lambda text: text in ("default", "local")),
} | dict.fromkeys(
    """
    allow_file_create allow_mounted_write cmd_type create_fsync create_on_open create_only create_serialize
    directory exit_what fadvise fadvise_hint fallocate file_append file_service_type filename_format
    fixedbufs force_async fsync_on_close_only group_id gtod_cpu hipri hipri_percentage hugepage-size
    invalidate iomem iomem_align lockmem log_compression log_compression_cpus log_entries mem mem_align
    nonvectored nowait nr_files nrfiles opendir openfiles overwrite prio prioclass
    registerfiles scramble_buffers softrandommap sqthread_poll sqthread_poll_cpu sync_file_range threads
    uncached unique_filename unlink unlink_each_loop userspace_reap verify_async verify_async_cpus
    verify_header_seed verify_state_save verify_table write_barrier
    """.split(),  # noqa: SIM905
    ON_DEVICE,
)
"""Files, the kernel's caches, its ways in and its schedulers: nothing of them is between an
await and a drive, so they change nothing that is measured. What the others ask for is so anyway,
or refused.
"""

KNOWN_TO_FIO = frozenset(
    """
    apptag apptag_mask arguments atomic bindname blocksize_unaligned brick bs_unaligned bsunaligned
    buffer_compress_chunk busy_poll cgroup cgroup_nodelete cgroup_weight chunk_size clientname clustername
    cmdprio cmdprio_bssplit cmdprio_class cmdprio_percentage cpuchunks cpuload cpumode dataplacement
    dedupe_global dedupe_mode dedupe_working_set_percentage donorname dp_scheme exec_postrun exec_prerun
    exit_on_io_done fdp fdp_pli flow flow_id flow_sleep flow_watermark gid grace_time hostname http_host https
    inplace interface latency_percentile latency_run latency_target latency_window listen
    log_alternate_epoch_clock_id max_latency md_per_io_size merge_blktrace_file
    merge_blktrace_iters merge_blktrace_scalars mss namenode nfs_url nodelay num_range offset_align pi_act
    pi_chk pingpong plid_select plids pool port prio_split program protocol rate_cycle rate_ignore_thinktime
    rate_iops_min rate_min ratecycle ratemin rbdname read_iolog read_iolog_chunked readfua
    replay_align replay_no_stall replay_redirect replay_scale replay_skip replay_time_scale sg_write_mode
    single_instance_on_node skip_bad spr_over_provisioning sprandom sqe_group
    startdelay_range std_redirect stonewall_on_error thinkcycles
    thinktime_blocks_type thinktime_iotime trim_backlog_batch trim_verify_zero ttl uid uri verb_op volume
    window_size write_iolog write_mode writefua zone_capacity zone_reset_frequency zone_reset_threshold
    zonecapacity
    """.split()  # noqa: SIM905
)
