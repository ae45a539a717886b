"""Published job files and wrappers' command lines run here, or are refused by name."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_fio_run import Bench

from nvme_async.errors import ConfigurationError
from nvme_async.fio.commandline import load_jobs, parse_arguments
from nvme_async.fio.engine_names import MAPPED, ONE_AT_A_TIME
from nvme_async.fio.expressions import evaluate, substitute
from nvme_async.fio.known import NO_CACHE
from nvme_async.fio.main import main
from nvme_async.fio.units import parse_size, parse_time


@pytest.fixture
def bench():
    return Bench()


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def jobs_of(*arguments: str):
    return load_jobs(parse_arguments(list(arguments)))[0]


def program(*arguments: str, bench: Bench) -> tuple[int, str]:
    out = io.StringIO()
    return main(list(arguments), opener=bench.opener, stdout=out), out.getvalue()


# -- job files -------------------------------------------------------------------------------------


def test_an_include_continues_its_section(tmp_path, monkeypatch):
    write(tmp_path / "part.fio", "bs=128k\niodepth=4\n")
    path = write(
        tmp_path / "all.fio", "[rand-read]\nrw=randread\ninclude part.fio\nsize=4m\n[next]\ninclude part.fio\n"
    )
    first, second = jobs_of("--filename=mem", path)
    assert (first.name, first.options.bs[0][0][0], first.options.iodepth, first.options.size) == (
        *("rand-read", 131072, 4),
        4 << 20,
    )
    assert second.options.iodepth == 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    there = write(tmp_path / "sub/far.fio", "[j]\ninclude part.fio\n")
    assert jobs_of("--filename=mem", there)[0].options.iodepth == 4, "or else where the program runs"
    bad = write(tmp_path / "sub/bad.fio", "[j]\ninclude gone.fio\n")
    with pytest.raises(ConfigurationError, match=r"bad\.fio:2: unable to open '.*gone\.fio'"):
        jobs_of("--filename=mem", bad)


def test_variables_keywords_and_arithmetic(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPTH", "16")
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    cpus = len(os.sched_getaffinity(0))
    path = write(
        tmp_path / "j.fio",
        "[j]\niodepth=${DEPTH}\nnumjobs=$ncpus\nbs=$pagesize\nsize=(4*1024)\ndescription=x${NO_SUCH_VARIABLE}y\n"
        "number_ios=2*$ncpus\nruntime=(2*3)\n",
    )
    (job,) = jobs_of("--filename=mem", path)
    options = job.options
    assert (options.iodepth, options.numjobs, options.description) == (16, cpus, "xy")
    assert options.bs[0][0][0] == os.sysconf("SC_PAGE_SIZE")
    assert (options.size, options.number_ios, options.runtime) == (4096, 2 * cpus, 6.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("(1+2*3)", 7), ("(2^10)", 1024), ("(4k*2)", 8192), ("(-1+3)", 2), ("(1m/2)", 524288), ("(7%4)", 3)],
)
def test_arithmetic_in_parentheses_is_computed(text, value):
    assert parse_size(text) == value
    assert parse_time("(1.5*2)") == 3.0


@pytest.mark.parametrize("text", ["(1+)", "(__import__('os'))", "(2^9999)", "(9^9^9^9)", "(1/0)", "(" * 500, "(1,2)"])
def test_text_outside_parentheses_is_not_computed(text):
    with pytest.raises(ConfigurationError, match="is not an expression"):
        evaluate(text)


def test_text_with_a_keyword_is_not_computed():
    assert substitute("log-$ncpus.txt") == f"log-{len(os.sched_getaffinity(0))}.txt"
    assert substitute("$ncpusX $other") == "$ncpusX $other"


def test_several_sections_run_and_a_missing_one_is_named(tmp_path):
    path = write(tmp_path / "j.fio", "[a]\nrw=read\n[b]\nrw=write\n[c]\nrw=trim\n")
    assert [job.name for job in jobs_of("--filename=m", "--section=a", "--section=c", path)] == ["a", "c"]
    with pytest.raises(ConfigurationError, match=r"no section 'aa' in .*j\.fio; did you mean a\?"):
        jobs_of("--filename=m", "--section=aa", path)


def test_a_job_file_may_be_standard_input(bench):
    command = [sys.executable, "-m", "nvme_async.fio.main", "--parse-only", "--filename=emulated:size=1MiB", "-"]
    source = "import sys; from nvme_async.fio.main import main; sys.exit(main())"
    command[1:3] = ["-c", source]
    done = subprocess.run(command, input="[j]\nrw=randread\n", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(command, input="[j]\nfoo=1\n", capture_output=True, text=True)
    assert done.stderr == "fio: standard input:2: unknown option 'foo'\n"


def test_the_command_line_overrides_the_file_and_its_device_replaces_the_files(tmp_path):
    path = write(
        tmp_path / "j.fio",
        "[global]\nfilename=/dev/nvme0n1\nbs=4k\ndirect=0\n[a]\niodepth=64\nfilename=/dev/sdb\n[b]\n",
    )
    a, b = jobs_of("--filename=mem", "--direct", "1", "--iodepth=2", path)
    for job in (a, b):
        assert (job.options.filename, job.options.iodepth, job.options.bs[0][0][0]) == (("mem",), 2, 4096)
    assert "filename" not in a.texts


def test_a_bare_log_option_takes_the_jobs_name(tmp_path):
    path = write(tmp_path / "j.fio", "[steady]\nwrite_bw_log\nwrite_lat_log=own\n")
    (job,) = jobs_of("--filename=mem", path)
    assert (job.options.write_bw_log, job.options.write_lat_log) == ("steady", "own")
    (job,) = jobs_of("--filename=mem", "--name=x", "--write_iops_log", "--time_based=0")
    assert job.options.write_iops_log == "x"


# -- the kernel's world ----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", sorted(MAPPED))
def test_kernel_engines_become_one_await_per_io(bench, engine, capsys):
    job = bench("--name=j", f"--ioengine={engine}", "--rw=randread", "--bs=4k", "--iodepth=8", "--size=64k")
    line, *more = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fio: ioengine={engine}: each I/O is awaited")
    assert not more
    capped = engine in ONE_AT_A_TIME
    assert ("capped at 1" in line) is capped
    assert job["iodepth_level"]["1" if capped else "8"] > 0
    assert (job["iodepth_level"]["1"] == 100.0) is capped
    assert job["job options"]["ioengine"] == engine


@pytest.mark.parametrize(("option", "said"), [("direct=0", True), ("buffered=1", True), ("direct=1", False)])
def test_a_page_cache_that_is_asked_for_is_not_there_and_that_is_said(bench, option, said, capsys):
    """The job runs: its I/O is direct, also where the file asks for buffered I/O."""
    job = bench("--name=j", f"--{option}", "--rw=randwrite", "--bs=4k", "--size=64k", "--verify=crc32c")
    assert (job["error"], job["write"]["io_bytes"], job["job options"][option[:-2]]) == (0, 65536, option[-1])
    lines = [line for line in capsys.readouterr().err.splitlines() if "bypasses the page cache" in line]
    assert lines == ([f"fio: {option}: {NO_CACHE}"] if said else [])


def test_file_and_kernel_options_change_nothing(bench):
    files = "directory=/mnt nrfiles=8 filesize=1g openfiles=4 file_service_type=random fallocate=none unlink=1"
    kernel = (
        "cpumask=1 hipri=1 registerfiles=1 fixedbufs=1 sqthread_poll=1 ioscheduler=none prio=0 invalidate=1 mem=mmap"
    )
    arguments = [f"--{option}" for option in f"{files} {kernel}".split()]
    job = bench("--name=j", "--rw=randread", "--bs=4k", "--size=64k", "--nice=0", *arguments)
    assert job["read"]["total_ios"] == 16


@pytest.mark.parametrize(
    "option",
    [
        *(
            "zone_reset_frequency=0.5",
            "numa_mem_policy=bind:0",
            "write_iolog=x",
            "dedupe_percentage=50",
            "continue_on_error=all",
        ),
        *("latency_target=1ms", "cmdprio_percentage=50", "fdp=1", "rate_min=1m", "flow=1", "kb_base=1000"),
    ],
)
def test_options_that_would_change_the_measurement_are_refused_by_name(option):
    with pytest.raises(ConfigurationError, match=re.escape(option.partition("=")[0])):
        jobs_of("--filename=mem", "--name=j", f"--{option}")


def test_fill_device_writes_to_the_end(bench):
    assert bench("--name=j", "--rw=write", "--bs=64k", "--size=4k", "--fill_device=1")["write"]["io_bytes"] == 1 << 20


@pytest.mark.parametrize("share", [0, 30, 100])
def test_percentage_random(bench, share):
    bench("--name=j", "--rw=randread", "--bs=4k", "--norandommap", f"--percentage_random={share}", "--io_size=4m")
    offsets = bench.offsets("read")
    follows = sum(
        new == old + 4096 or (new == 0 and old == 0xFF000) for old, new in zip(offsets, offsets[1:], strict=False)
    )
    assert abs(follows / len(offsets) - (1 - share / 100)) < 0.06


def test_clones_can_have_one_cpu_each(bench):
    cpus = sorted(os.sched_getaffinity(0))
    text = ",".join(map(str, cpus))
    nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 1)  # only root may lower it
    words = [f"--cpus_allowed={text}", "--cpus_allowed_policy=split", "--numjobs=3", "--size=64k", f"--nice={nice}"]
    bench("--name=j", *words)
    assert sorted(os.sched_getaffinity(0)) == cpus


def test_a_priority_that_is_refused_fails_the_job(bench, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "setpriority", refuse)
    code, _ = program("--filename=mem", "--name=j", "--nice=1", "--numjobs=2", "--size=64k", bench=bench)
    assert code == 1
    assert "PermissionError: [Errno 13] Permission denied" in capsys.readouterr().err


def test_a_negative_hole_runs_backwards_from_the_end(bench):
    bench("--name=j", "--rw=read:-8k", "--bs=4k", "--size=64k")
    assert bench.offsets("read") == [(15 - n) * 4096 - 4096 if n < 15 else 57344 for n in range(16)]


def test_zones_of_random_offsets(bench):
    for text in ("zoned:50/5:30/15:20/", "zoned:50/5:30/15:20/80", "zoned_abs:50/52k:30/156k:20/10g"):
        bench("--name=j", "--rw=randread", "--bs=1k", f"--random_distribution={text}", "--io_size=4m")
        offsets = bench.offsets("read")
        parts = [
            sum(low <= at / (1 << 20) < high for at in offsets) for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 1))
        ]
        assert [round(part / len(offsets), 1) for part in parts] == [0.5, 0.3, 0.2]


@pytest.mark.parametrize(
    "text", ["zoned:50/5:40/5", "zoned:x/5", "zoned:50/60:50/60", "zoned:100/5,100/6", "zoned_abs:9"]
)
def test_invalid_zones_are_refused(text):
    with pytest.raises(ConfigurationError, match="random_distribution=zoned"):
        jobs_of("--filename=mem", "--name=j", f"--random_distribution={text}")


def test_strides_work_on_a_part_of_each_zone(bench):
    zone = ["--zonemode=strided", "--zonerange=64k", "--zonesize=8k", "--zoneskip=64k"]
    bench("--name=j", "--rw=read", "--bs=4k", "--size=512k", "--io_size=40k", *zone)
    assert bench.offsets("read") == [0, 4096, 131072, 135168, 262144, 266240, 393216, 397312, 0, 4096]
    bench("--name=j", "--rw=randread", "--bs=4k", "--size=512k", "--io_size=32k", *zone)
    assert [offset // 131072 for offset in bench.offsets("read")] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(offset % 131072 < 65536 for offset in bench.offsets("read"))


def test_a_job_waits_for_another(bench, capsys):
    bench("--name=a", "--rw=write", "--bs=64k", "--thinktime=5ms", "--name=b", "--wait_for=a", "--rw=read", "--bs=64k")
    kinds = [kind for kind, _, _ in bench.namespace.history if kind != "first"]
    assert kinds == ["write"] * 16 + ["read"] * 16
    bench("--name=a", "--wait_for=b", "--name=b", "--wait_for=a", code=1)
    assert "job 'a': wait_for=b: no such job before it (none)" in capsys.readouterr().err


def test_overlapping_ios_are_kept_apart_on_request(bench):
    bench.namespace.delay = 0.001
    job = ("--name=j", "--rw=randwrite", "--bs=8k", "--blockalign=4k", "--norandommap", "--size=32k", "--number_ios=60")
    flying: dict[int, int] = {}
    clashes = 0
    original = bench.namespace.write

    async def write(lba, data, *, fua=False):
        nonlocal clashes
        blocks = range(lba, lba + 16)
        clashes += any(flying.get(block) for block in blocks)
        for block in blocks:
            flying[block] = flying.get(block, 0) + 1
        try:
            await original(lba, data, fua=fua)
        finally:
            for block in blocks:
                flying[block] -= 1

    bench.namespace.write = write
    bench(*job, "--iodepth=4")
    assert clashes > 0
    clashes = 0
    bench(*job, "--iodepth=4", "--serialize_overlap=1")
    assert clashes == 0


def test_patterns_from_files_and_of_several_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.bin").write_bytes(b"contents")
    parts = jobs_of("--filename=mem", "--name=j", "--buffer_pattern=\"abcd\"-120xdeadface'p.bin'")[0].options
    assert parts.buffer_pattern == b"abcd" + b"\xf4" + bytes.fromhex("deadface") + b"contents"
    with pytest.raises(ConfigurationError, match="pattern file 'gone': No such file"):
        jobs_of("--filename=mem", "--name=j", "--buffer_pattern='gone'")


def test_lfsr_visits_each_block_once(bench):
    bench("--name=j", "--rw=randread", "--bs=4k", "--norandommap=1", "--random_generator=lfsr")
    assert sorted(bench.offsets("read")) == list(range(0, 1 << 20, 4096))


def test_lenient_syntax_of_published_files(bench, tmp_path):
    path = write(tmp_path / "j.fio", "[j]\nsize=100%%\ntime_based\nbs=4k-8k\nthreads=1\nrw=write\n")
    (job,) = jobs_of("--filename=mem", path)
    assert [sizes[0][0] for sizes in job.options.bs] == [4096, 8192, 8192]
    assert not job.options.time_based, "no runtime: fio ignores it, too"
    assert bench("--name=j", "--numa_cpu_nodes=0", "--size=64k")["read"]["total_ios"] == 16


# -- reports ---------------------------------------------------------------------------------------


def test_submission_latency_is_reported_on_request(bench):
    bench.namespace.delay = 0.002
    plain = bench("--name=j", "--rw=randread", "--bs=4k", "--number_ios=8")
    assert plain["read"]["slat_ns"]["N"] == 0
    read = bench(
        "--name=j", "--rw=randread", "--bs=4k", "--number_ios=8", "--slat_percentiles=1", "--lat_percentiles=1"
    )["read"]
    slat, clat, lat = (read[f"{kind}_ns"] for kind in ("slat", "clat", "lat"))
    assert (slat["N"], clat["N"], lat["N"]) == (8, 8, 8)
    assert "50.000000" in slat["percentile"]
    assert slat["mean"] + clat["mean"] == pytest.approx(lat["mean"])
    assert 0 < slat["min"] < lat["min"]
    assert 0 < clat["min"] < lat["max"]
    assert lat["min"] >= 2_000_000
    code, text = program("--filename=mem", "--name=j", "--number_ios=8", "--slat_percentiles=1", bench=bench)
    assert code == 0
    assert re.search(r"^    slat \(\w+\): min=.*\n    clat", text, re.MULTILINE)
    assert "    slat percentiles (" in text


@pytest.mark.parametrize(
    ("mode", "names"), [("none", "read write trim"), ("mixed", "mixed"), ("2", "read write trim mixed")]
)
def test_unified_reports(bench, mode, names):
    job = bench("--name=j", "--rw=randrw", "--bs=4k", "--size=256k", f"--unified_rw_reporting={mode}")
    assert [name for name in ("read", "write", "trim", "mixed") if name in job] == names.split()
    if "mixed" in job:
        assert job["mixed"]["total_ios"] == 64
    _, text = program("--filename=mem", "--name=j", "--rw=randrw", f"--unified_rw_reporting={mode}", bench=bench)
    assert ("  mixed: IOPS=" in text) is ("mixed" in names)
    assert ("  MIXED: bw=" in text) is ("mixed" in names)
    assert ("  read: IOPS=" in text) is ("read" in names)


@pytest.mark.parametrize(("version", "fields"), [("2", 161), ("3", 121), ("4", 162), ("5", 180)])
def test_terse_versions_have_fios_number_of_fields(bench, version, fields):
    """Counted on fio 3.33 with ioengine=null, which has no disk statistics either."""
    arguments = ["--filename=mem", "--name=j", "--size=64k", f"--terse-version={version}"]
    _, text = program(*arguments, "--minimal", bench=bench)
    assert text.startswith(f"{version};")
    assert len(text.strip().split(";")) == fields
    code, text = program(*arguments, "--append-terse", bench=bench)
    assert code == 0
    assert text.index("Run status group 0") < text.index(f"\n{version};")


def test_histogram_and_aggregate_logs(bench, tmp_path):
    arguments = [*("--filename=mem", "--name=j", "--rw=randrw", "--bs=4k,8k", "--time_based", "--runtime=1200ms")]
    logs = [
        "--write_hist_log",
        "--log_hist_msec=200",
        "--log_hist_coarseness=3",
        "--bandwidth-log",
        f"--aux-path={tmp_path}",
    ]
    _, text = program(*arguments, *logs, "--output-format=json", bench=bench)
    (job,) = json.loads(text)["jobs"]
    rows = [list(map(int, line.split(", "))) for line in (tmp_path / "j_clat_hist.1.log").read_text().splitlines()]
    assert {len(row) for row in rows} == {3 + (1856 >> 3)}
    assert len({row[0] for row in rows}) >= 2  # how many depends on how busy the machine is
    for direction, (name, size) in enumerate([("read", 4096), ("write", 8192)]):
        mine = [row for row in rows if row[1] == direction]
        assert sum(sum(row[3:]) for row in mine) == job[name]["total_ios"]
        assert {row[2] for row in mine} == {size}
    aggregate = (tmp_path / "agg-read_bw.log").read_text().splitlines()
    assert [line.split(", ")[2] for line in aggregate] == ["0"]
    assert (tmp_path / "agg-trim_bw.log").read_text() == ""


def test_help_of_one_option_and_of_the_engines(bench):
    assert "blocksize" in program("--cmdhelp=bs", bench=bench)[1]
    assert program("--cmdhelp=direct", bench=bench)[1].startswith(
        "              direct: accepted; buffered I/O is not used"
    )
    assert "libaio" in program("--cmdhelp=ioengine", bench=bench)[1]
    assert "\tlibaio" in program("--enghelp", bench=bench)[1]
    assert "taken as await" in program("--enghelp=libaio", bench=bench)[1]
    assert program("--cmdhelp=iodpth", bench=bench)[0] == 1


def test_program_options_of_wrappers(bench, capsys):
    wrapper = ["--max-jobs=4", "--eta-newline=1", "--eta-interval=500", "--alloc-size=65536", "--debug=io"]
    wrapper.append("--warnings-fatal")
    assert program("--filename=mem", *wrapper, "--name=j", "--size=64k", bench=bench)[0] == 0
    assert program("--filename=mem", "--max-jobs=4", "--name=j", "--size=64k", "--numjobs=5", bench=bench)[0] == 1
    assert "maximum number of jobs (4) reached: 5 are defined" in capsys.readouterr().err
    assert program("--filename=mem", "--status-interval=x", "--name=j", bench=bench)[0] == 1
    assert "status-interval=x: 'x' is not a time" in capsys.readouterr().err


def test_debug_output_of_options_and_seeds(bench):
    code, text = program("--parse-only", "--debug=parse", "--ss_dur=10s", "--ss=bw:.1%", bench=bench)
    assert code == 0
    assert "set steady state threshold to 0.100000%" in text
    seeds = []
    for extra in (["--randseed=1"], ["--randseed=1"], ["--randseed=2"], ["--randrepeat=0"], ["--randrepeat=0"]):
        code, text = program("--filename=mem", "--debug=random", "--name=j", "--size=64k", *extra, bench=bench)
        assert "FIO_RAND_NR_OFFS=1\n" in text
        seeds.append(re.search(r"^random .*rand_seeds\[0\]=(\d+)$", text, re.MULTILINE)[1])
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 4


def test_the_steady_states_interval(bench):
    arguments = ["--ss=iops:99%", "--ss_dur=600ms", "--ss_interval=200ms", "--time_based", "--runtime=30"]
    job = bench("--name=j", "--rate_iops=200", *arguments)
    assert job["steadystate"]["attained"] == 1
    assert job["read"]["runtime"] < 10000
    assert len(job["steadystate"]["data"]["iops"]) == 3


def refused_by_the_docs() -> list[str]:
    """The options in the first column of docs/benchmark.md's table, except those that end with a
    star.
    """
    page = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith(("| `", "| engines"))]
    names = [(row.lstrip().startswith("engines"), name) for row in rows for name in re.findall(r"`([^`]+)`", row)]
    options = [f"ioengine={name}" if engine else name for engine, name in names if "*" not in name]
    return [option if option.startswith("--") else f"--{option}" for option in options]


@pytest.mark.parametrize("option", refused_by_the_docs())
def test_options_documented_as_refused_are_refused_by_name(option):
    option = option if "=" in option else f"{option}=1"
    with pytest.raises(ConfigurationError, match=re.escape(option.lstrip("-").partition("=")[0])):
        jobs_of("--filename=mem", "--name=j", option)


@pytest.mark.parametrize(
    ("arguments", "moved"),
    [
        (("--size=0",), 1 << 20),
        (("--filesize=256k",), 256 << 10),
        (("--filesize=256k", "--size=50%"), 128 << 10),
        (("--filesize=256k", "--offset=192k"), 64 << 10),
        (("--filesize=2g",), 1 << 20),
    ],
)
def test_sizes_as_fio_takes_them(bench, arguments, moved):
    """0 is as if it had not been given; filesize bounds the device."""
    assert bench("--name=j", "--rw=read", "--bs=64k", *arguments)["read"]["io_bytes"] == moved
