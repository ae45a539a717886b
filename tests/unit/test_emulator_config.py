"""Options of an emulated controller: valid ones, and how all others are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_async.emulator import EmulatedController, EmulatorConfig, parse_size
from nvme_async.emulator.extras import Extras
from nvme_async.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1k", 1 << 10),
        ("1K", 1 << 10),
        ("64m", 64 << 20),
        ("1GiB", 1 << 30),
        ("1gib", 1 << 30),
        ("1.5MiB", 3 << 19),
        ("2T", 2 << 40),
        (" 8 KiB ", 8 << 10),
        (512, 512),
    ],
)
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("host_memory=5000", "host_memory=5000: must be a multiple of 4096"),
        ("host_memory=4k,host_memory_min=8k", "host_memory_min=8192: must be at most host_memory=4096"),
        ("host_memory_entries=3", "need host_memory="),
    ],
)
def test_sizes_of_the_host_memory_buffer_are_checked(options, said):
    with pytest.raises(ConfigurationError, match=said):
        EmulatorConfig.parse(options)


@pytest.mark.parametrize("text", ["", "x", "-1", "1kB", "1GB", "1ib", "1 2", "0.3k", "1e6", "0x10", "GiB", "1..5k"])
def test_invalid_sizes_are_refused(text):
    with pytest.raises(ConfigurationError, match="size="):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_sizes_are_whole_bytes(nbytes):
    assert parse_size(str(nbytes)) == nbytes
    if nbytes % 1024 == 0:
        assert parse_size(f"{nbytes // 1024}KiB") == nbytes


def test_defaults():
    config = EmulatorConfig.parse("")
    (medium,) = config.media
    assert (medium.kind, medium.nbytes, medium.block_size) == ("ram", 1 << 30, 4096)
    assert (config.queues, config.vectors, config.depth, config.mdts) == (64, 65, 1024, 128 << 10)
    assert config.mdts_exponent == 5
    assert config.dbbuf
    assert config.reactor == "shared"


def test_formats():
    config = EmulatorConfig.parse("formats=512/4096/512+8/4096+16g64s16,block=512,metadata=8,extended=on")
    assert [str(one) for one in config.formats] == ["512", "4096", "512+8", "4096+16g64s16"]
    assert [one.pif for one in config.formats] == [0, 0, 0, 2]
    (medium,) = config.media
    assert (medium.block_size, medium.metadata, medium.extended, medium.dps) == (512, 8, True, 0)
    assert [str(one) for one in EmulatorConfig.parse("block=4096,metadata=64").formats] == ["512", "4096", "4096+64"]
    assert EmulatorConfig.parse("format_time=1.5,effects=off").format_time == 1.5


def test_extras():
    extras = EmulatorConfig.parse("capacity=4GiB,self_test=2.5,sanitize=on,firmware_slots=3,telemetry=on,ana=2").extras
    assert (extras.capacity, extras.self_test, extras.firmware_slots) == (4 << 30, 2.5, 3)
    assert extras.sanitize > 0
    assert (extras.telemetry, extras.ana, extras.security) == (True, 2, False)
    host = EmulatorConfig.parse("host_memory=8MiB,host_memory_min=4MiB,host_memory_entry=64k").extras
    assert (host.host_memory, host.host_memory_min, host.host_memory_entry) == (8 << 20, 4 << 20, 64 << 10)
    assert EmulatorConfig.parse("host_memory=8MiB").extras.host_memory_min == 8 << 20
    plain = EmulatorConfig.parse("self_test=off").extras
    assert plain == Extras()
    assert (plain.self_test, plain.latency, plain.bandwidth, plain.copy_formats) == (0, 0, 0, (0,))


def test_all_options_at_once():
    config = EmulatorConfig.parse(
        "size=16MiB,block=512,namespaces=3,medium=file,path=/tmp/a%2Cb,queues=4,depth=4096,vectors=3,mdts=1MiB,"
        "dbbuf=off,serial=S1,model=A model,firmware=1.0,reactor=own"
    )
    assert [medium.path for medium in config.media] == ["/tmp/a,b.1", "/tmp/a,b.2", "/tmp/a,b.3"]
    assert {medium.nbytes for medium in config.media} == {16 << 20}
    assert (config.block, config.queues, config.depth, config.vectors) == (512, 4, 4096, 3)
    assert (config.mdts_exponent, config.dbbuf, config.reactor) == (8, False, "own")
    assert (config.serial, config.model, config.firmware) == ("S1", "A model", "1.0")


def test_vectors_follow_queues():
    assert EmulatorConfig.parse("queues=7").vectors == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("sise=1GiB", ["sise", "size"]),
        ("size", ["size", "key=value"]),
        ("size=1GiB,size=2GiB", ["size", "twice"]),
        ("size=0", ["size", "at least one block"]),
        ("formats=512/x", ["formats=", "'x'", "4096+8"]),
        ("formats=512/512", ["formats=", "twice"]),
        ("formats=512", ["formats=", "4096", "block="]),
        ("formats=512/4096/1024", ["block_size=1024", "512, 4096"]),
        ("formats=512/4096/4096+200", ["metadata=200", "0 to 128"]),
        ("formats=512/4096/4096+8g64", ["4096+8g64", "16 bytes"]),
        ("formats=512/4096/4096+8s33", ["33 bits", "0 to 32"]),
        ("pi=1", ["pi=1", "metadata=8"]),
        ("extended=on", ["extended=on", "metadata="]),
        ("firmware_slots=9", ["firmware_slots=9", "2 to 7"]),
        ("capacity=1MiB,size=1MiB,namespaces=2", ["capacity=", "2097152"]),
        ("self_test=soon", ["self_test=", "seconds"]),
        ("ana=17", ["ana=17", "0 to 16"]),
        ("format_time=long", ["format_time=", "seconds"]),
        ("size=5000", ["size=5000", "block=4096"]),
        ("size=3PiB", ["size="]),
        ("block=1024", ["block=1024", "512, 4096"]),
        ("namespaces=0", ["namespaces=0", "1 to 16"]),
        ("namespaces=17", ["namespaces=17", "1 to 16"]),
        ("namespaces=x", ["namespaces='x'"]),
        ("queues=65", ["queues=65", "1 to 64"]),
        ("depth=1", ["depth=1", "2 to 4096"]),
        ("depth=4097", ["depth=4097", "2 to 4096"]),
        ("vectors=66", ["vectors=66", "1 to 65"]),
        ("mdts=4KiB", ["mdts=4096", "8192 to 8388608"]),
        ("mdts=16MiB", ["mdts=16777216"]),
        ("mdts=96KiB", ["mdts=98304", "power of two"]),
        ("dbbuf=maybe", ["dbbuf='maybe'"]),
        ("medium=tape", ["medium='tape'", "ram, file, null"]),
        ("medium=file", ["path="]),
        ("path=/tmp/x", ["/tmp/x", "medium=file"]),
        ("serial=" + "x" * 21, ["serial", "21", "20"]),
        ("model=" + "x" * 41, ["model", "40"]),
        ("serial=%C3%A9", ["serial", "ASCII"]),
        ("reactor=none", ["reactor='none'"]),
    ],
)
def test_refusals_name_the_option_and_its_valid_values(options, words):
    with pytest.raises(ConfigurationError) as caught:
        EmulatorConfig.parse(options)
    for word in words:
        assert word in str(caught.value)


def test_an_existing_file_gives_the_size(tmp_path):
    file = tmp_path / "disk"
    file.write_bytes(bytes(10_000))
    assert EmulatorConfig.parse(f"medium=file,path={file}").media[0].nbytes == 8192
    assert EmulatorConfig.parse(f"medium=file,path={file},block=512").media[0].nbytes == 9728
    file.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="shorter than one block"):
        _ = EmulatorConfig.parse(f"medium=file,path={file}").media


def test_a_missing_file_is_created_and_a_short_one_grows(tmp_path):
    file = tmp_path / "disk"
    EmulatedController(f"medium=file,path={file},size=1MiB").close()
    assert file.stat().st_size == 1 << 20
    file.write_bytes(b"data")
    EmulatedController(f"medium=file,path={file},size=1MiB").close()
    assert file.stat().st_size == 1 << 20
    assert file.read_bytes()[:4] == b"data"
    with pytest.raises(ConfigurationError, match="No such file"):
        EmulatedController(f"medium=file,path={tmp_path}/missing/disk,size=1MiB")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fdp=129", "fdp"),
        ("fdp=2,fdp_groups=17", "fdp_groups"),
        ("fdp=2,fdp_unit=5000", "fdp_unit=5000: must be a multiple of 4096"),
        ("fdp_groups=2", "need fdp="),
        ("streams=257", "streams"),
    ],
)
def test_placement_options_have_limits(text, message):
    with pytest.raises(ConfigurationError, match=message):
        EmulatorConfig.parse(text)


def test_placement_implies_an_endurance_group():
    assert EmulatorConfig.parse("fdp=2").extras.endurance
