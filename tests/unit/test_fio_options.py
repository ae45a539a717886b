"""Job files and command lines, as fio users write them."""

import pytest

from nvme_async.errors import ConfigurationError
from nvme_async.fio.commandline import command_line, load_jobs, parse_arguments
from nvme_async.fio.known import ACCEPTED, KNOWN_TO_FIO
from nvme_async.fio.options import canonical, help_lines
from nvme_async.fio.parsers import Percent, byte_pattern, filenames
from nvme_async.fio.units import format_number, format_time, parse_size, parse_time

URI = "--filename=emulated:size=256MiB"


def jobs_of(*arguments):
    return load_jobs(parse_arguments([URI, *arguments]))[0]


def options_of(*arguments):
    (job,) = jobs_of("--name=j", *arguments)
    return job.options


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4096", 4096),
        ("4k", 4096),
        ("4K", 4096),
        ("4KiB", 4096),
        ("1m", 1 << 20),
        ("2g", 2 << 30),
        ("1.5m", 1572864),
        ("0x1000", 4096),
        ("1t", 1 << 40),
        ("16kb", 16384),
    ],
)
def test_sizes_are_powers_of_1024(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    ("text", "unit", "seconds"),
    [
        ("10", "s", 10),
        ("10", "us", 1e-5),
        ("5m", "s", 300),
        ("250ms", "s", 0.25),
        ("100us", "s", 1e-4),
        ("1h", "s", 3600),
    ],
)
def test_times_have_units(text, unit, seconds):
    assert parse_time(text, unit) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "k", "4q", "-1", "4 5", "0x"])
def test_an_invalid_size_is_refused(text):
    with pytest.raises(ConfigurationError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("value", "binary", "text"),
    [
        (1999, False, "1999"),
        (71900, False, "71.9k"),
        (3269000, False, "3269k"),
        (13421772800, True, "12.5Gi"),
        (160432128, True, "153Mi"),
        (8187904, True, "7996Ki"),
        (67108864, True, "64.0Mi"),
        (1048576, True, "1024Ki"),
        (10239, False, "10.2k"),
        (99999, False, "100.0k"),
        (0, False, "0"),
    ],
)
def test_numbers_are_printed_like_fio_does(value, binary, text):
    assert format_number(value, binary=binary) == text


def test_durations_of_the_eta_line():
    assert [format_time(s) for s in (31, 3900, 180000)] == ["00m:31s", "01h:05m:00s", "2d:02h:00m:00s"]


def test_name_starts_a_job_and_earlier_options_apply_to_all():
    one, two = jobs_of("--bs=8k", "--name=one", "--rw=randread", "--name=two", "--rw", "write", "--iodepth=4")
    assert (one.name, one.options.rw.name, one.options.iodepth) == ("one", "randread", 1)
    assert (two.name, two.options.rw.name, two.options.iodepth) == ("two", "write", 4)
    assert one.options.bs == two.options.bs == (((8192, 1.0),),) * 3
    assert one.texts == {"name": "one", "rw": "randread"}
    assert command_line(two) == f"--name=two {URI} --bs=8k --rw=write --iodepth=4"


def test_global_sections_apply_to_later_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPTH", "16")
    (tmp_path / "more.fio").write_text("[included]\nrw=write\n")
    path = tmp_path / "jobs.fio"
    path.write_text(
        "; a comment\n[global]\nbs=4k   # four\niodepth = ${DEPTH}\ntime_based\nruntime=2s\n\n"
        "[a]\nrw=randread:8\n[global]\nbs=8k,16k\n[b]\nstonewall\nname=beta\nrw=readwrite\ninclude more.fio\n"
    )
    jobs, defaults = load_jobs(parse_arguments([URI, str(path)]))
    assert [job.name for job in jobs] == ["a", "beta", "included"]
    a, b, _ = (job.options for job in jobs)
    assert (a.iodepth, a.time_based, a.runtime, a.rw.sequence) == (16, True, 2.0, 8)
    assert b.stonewall
    assert b.rw.mixed
    assert [sizes[0][0] for sizes in b.bs] == [8192, 16384, 16384]
    assert defaults["bs"] == "8k,16k"
    only, _ = load_jobs(parse_arguments([URI, "--section=included", str(path)]))
    assert [job.name for job in only] == ["included"]


def test_a_job_file_error_names_file_line_and_option(tmp_path):
    path = tmp_path / "bad.fio"
    path.write_text("[j]\nrw=read\nfoo=3\n")
    with pytest.raises(ConfigurationError, match=r"bad\.fio:3: unknown option 'foo'"):
        load_jobs(parse_arguments([str(path)]))
    path.write_text("rw=read\n")
    with pytest.raises(ConfigurationError, match=r"precedes the first \[section\]"):
        load_jobs(parse_arguments([str(path)]))
    with pytest.raises(ConfigurationError, match=r"unable to open 'none\.fio' job file"):
        load_jobs(parse_arguments(["none.fio"]))
    path.write_text("[j]\ninclude bad.fio\n")
    with pytest.raises(ConfigurationError, match="includes are nested"):
        load_jobs(parse_arguments([str(path)]))


def test_unknown_and_unsupported_options_are_different_errors():
    with pytest.raises(ConfigurationError, match=r"^unknown option 'wobble'$"):
        parse_arguments(["--name=j", "--wobble=3"])
    with pytest.raises(ConfigurationError, match=r"^unknown option 'iodpth'\. Did you mean iodepth\?$"):
        parse_arguments(["--name=j", "--iodpth=3"])
    with pytest.raises(ConfigurationError, match=r"Did you mean output-format\?"):
        parse_arguments(["--output-formt=json"])
    with pytest.raises(ConfigurationError, match=r"^fio's option 'max_latency' is not supported here$"):
        parse_arguments(["--name=j", "--max_latency=1s"])
    with pytest.raises(ConfigurationError, match=r"^fio's option '--server' is not supported here$"):
        parse_arguments(["--server"])


def test_no_option_is_both_supported_and_refused():
    for name in ACCEPTED:
        assert canonical(name) == name
    supported = [line.split()[0].rstrip(",") for line in help_lines()]
    assert not KNOWN_TO_FIO.intersection(supported)
    assert not KNOWN_TO_FIO.intersection(ACCEPTED)
    assert not set(supported).intersection(ACCEPTED)


FIO_OPTIONS = """
    rw bs bsrange bssplit blockalign iodepth iodepth_batch_submit iodepth_batch_complete_min
    iodepth_batch_complete_max numjobs thread size io_size offset offset_increment runtime time_based ramp_time
    rwmixread rwmixwrite norandommap randrepeat randseed random_distribution rate rate_iops thinktime fsync
    fdatasync number_ios group_reporting
    percentile_list write_bw_log write_lat_log write_iops_log log_avg_msec stonewall startdelay buffer_pattern
    zero_buffers refill_buffers verify verify_backlog verify_fatal verify_only do_verify steadystate
"""


@pytest.mark.parametrize("name", FIO_OPTIONS.split())
def test_options_used_by_scripts_are_supported(name):
    assert canonical(name)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--rw=foo", "rw=foo: 'foo' is not one of read, write, trim"),
        ("--bs=abc", "bs=abc: 'abc' is not a size"),
        ("--iodepth=0", r"iodepth=0: 0 is out of range \(1 to 65535\)"),
        ("--ioengine=libfoo", "'libfoo' is not one of await, many"),
        ("--ioengine=rados", "fio's engine 'rados' is not supported here: it does not drive block devices"),
        ("--runtime=x", "runtime=x: 'x' is not a time"),
        ("--bssplit=4k/60:8k/60", "add up to 120 %"),
        ("--random_distribution=zoned:1", "add up to 1 %, not to 100 %"),
        ("--verify=foo", "verify=foo"),
        ("--verify_only", "verify_only needs verify"),
        ("--steadystate=foo:1", "iops_slope"),
        ("--ioengine=many --verify=crc32c", "ioengine=many does not support verify"),
    ],
)
def test_an_invalid_value_is_named_with_the_valid_ones(argument, message):
    with pytest.raises(ConfigurationError, match=message):
        options_of(*argument.split())


def test_a_job_without_a_device_is_refused():
    with pytest.raises(ConfigurationError, match="job 'j': no device: --filename="):
        load_jobs(parse_arguments(["--name=j"]))
    with pytest.raises(ConfigurationError, match="--name=NAME is missing"):
        load_jobs(parse_arguments(["--rw=read"]))


def test_complex_option_values():
    options = options_of(
        "--bsrange=4k-16k",
        "--bssplit=4k/60:64k",
        "--size=25%",
        "--rate=1m,2m",
        "--rwmixwrite=30",
        "--percentile_list=99.9:50",
        "--random_distribution=zipf:1.2",
        "--steadystate=iops_slope:0.5%",
        "--ss_dur=10",
        "--cpus_allowed=0-1,3",
        "--direct=1",
        "--thread",
        "--gtod_reduce=1",
        "--thinktime=20",
    )
    assert options.bsrange == (((4096, None), (16384, None)),) * 3
    assert options.bssplit[0] == ((4096, 0.6), (65536, 0.4))
    assert options.size == Percent(25.0)
    assert options.rate == (1 << 20, 2 << 20, 2 << 20)
    assert options.rwmixread == 70
    assert options.percentile_list == (50.0, 99.9)
    assert options.random_distribution.parameter == 1.2
    assert str(options.steadystate) == "iops_slope:0.500000%"
    assert options.cpus_allowed == {0, 1, 3}
    assert options.disable_clat
    assert options.disable_bw_measurement
    assert options.thinktime == pytest.approx(20e-6)


def test_several_devices_are_separated_by_bars_because_uris_have_colons():
    assert filenames("emulated:size=1GiB|pci:0000:01:00.0") == ("emulated:size=1GiB", "pci:0000:01:00.0")
    assert filenames(r"pci\:0000\:01\:00.0") == ("pci:0000:01:00.0",)
    assert filenames("emulated:size=1GiB:pci:0000:01:00.0:vfio-user:/run/a.sock") == (
        "emulated:size=1GiB",
        "pci:0000:01:00.0",
        "vfio-user:/run/a.sock",
    )
    assert filenames(r"vfio-user:/run/a\:pci:b") == ("vfio-user:/run/a:pci:b",)
    assert filenames("vfio-user:/run/emulated:x") == ("vfio-user:/run/emulated:x",)
    for empty in ("emulated:size=1GiB|", "|", ""):
        with pytest.raises(ConfigurationError, match="empty"):
            filenames(empty)
    with pytest.raises(ConfigurationError, match="iodepth=1 is less than the number of filenames"):
        options_of("--filename=a:|b:")


def test_patterns_of_bytes():
    assert byte_pattern("0xdeadbeef") == b"\xde\xad\xbe\xef"
    assert byte_pattern('0xff"abc"10') == b"\xffabc\x0a"
    assert byte_pattern("-12") == b"\xf4"
    with pytest.raises(ConfigurationError, match="not a pattern"):
        byte_pattern("zz")
