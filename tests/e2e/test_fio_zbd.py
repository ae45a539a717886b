"""zonemode=zbd of the benchmark: a zoned namespace is written at write pointers, and read below
them.
"""

import asyncio
import io
import json

import pytest

import nvme_async
from nvme_async.driver.zoned import ZonedNamespace
from nvme_async.emulator import EmulatedController
from nvme_async.fio.main import main

MIB = 1 << 20
ZONED = "zoned=on,zone_size=1MiB"


def bench(*arguments, code=0):
    out = io.StringIO()
    assert main(["--output-format=json", "--name=j", "--zonemode=zbd", *arguments], stdout=out) == code
    text = out.getvalue()
    return json.loads(text)["jobs"] if text else []


@pytest.fixture
def drive(tmp_path):
    """The URI of a zoned controller that outlives the program's runs."""
    with EmulatedController(f"size=16MiB,block=4096,{ZONED},zone_capacity=768KiB,max_open=4") as controller:
        path = str(tmp_path / "cntrl")
        controller.listen(path)
        yield f"vfio-user:{path}"


def zones_of(uri):
    """Blocks written and state of each zone."""

    async def read():
        async with nvme_async.open(uri) as controller:
            zoned = await ZonedNamespace.of(controller.namespaces[1])
            found = [zone async for zone in zoned.zones()]
        return [(None if zone.state.name == "FULL" else zone.wp - zone.zslba, zone.state.name) for zone in found]

    return asyncio.run(read())


async def write_some(uri):
    async with nvme_async.open(uri) as controller:
        zoned = await ZonedNamespace.of(controller.namespaces[1])
        await zoned.write(3 * 256, bytes(10 * 4096))
        await zoned.write(5 * 256, bytes(4096))


@pytest.mark.parametrize("rw", ["write", "randwrite", "rw", "randrw"])
@pytest.mark.parametrize("depth", [1, 8])
def test_what_is_written_is_verified(rw, depth):
    uri = f"--filename=emulated:size=6MiB,block=4096,{ZONED},zone_capacity=768KiB,max_open=4,max_active=4"
    (job,) = bench(uri, f"--rw={rw}", "--bs=16k", f"--iodepth={depth}", "--verify=crc32c", "--verify_fatal=1")
    assert job["error"] == 0
    assert job["write"]["total_ios"] + job["read"]["total_ios"] > 250


@pytest.mark.parametrize("bs", ["--bs=12k", "--bsrange=4k-32k"])
def test_blocks_that_do_not_fill_a_zone_leave_it_finished(bs):
    uri = "--filename=emulated:size=6MiB,block=4096,zoned=on,zone_size=1536KiB,zone_capacity=1MiB,max_open=2"
    for rw in ("write", "randwrite"):
        (job,) = bench(uri, f"--rw={rw}", bs, "--iodepth=4", "--verify=crc32c", "--max_open_zones=2")
        assert job["error"] == 0


def test_a_sequential_job_writes_each_zone_once_and_then_resets(drive):
    (job,) = bench(f"--filename={drive}", "--rw=write", "--bs=32k", "--iodepth=4", "--size=4m")
    assert job["write"]["io_bytes"] == 4 * 768 * 1024
    assert (zones_of(drive))[:5] == [(None, "FULL")] * 4 + [(0, "EMPTY")]
    bench(f"--filename={drive}", "--rw=write", "--bs=32k", "--size=4m", "--io_size=800k")
    assert (zones_of(drive))[:3] == [(None, "FULL"), (8, "IMPLICITLY_OPENED"), (None, "FULL")]


def test_resets_are_reported():
    out = io.StringIO()
    uri = f"emulated:size=4MiB,block=4096,{ZONED}"
    arguments = ["--name=j", "--zonemode=zbd", f"--filename={uri}", "--rw=write", "--bs=64k", "--io_size=10m"]
    assert main(arguments, stdout=out) == 0
    assert "; 6 zone resets" in out.getvalue()


@pytest.mark.parametrize("rw", ["read", "randread"])
def test_reads_stay_below_the_write_pointers(drive, rw, tmp_path):
    assert bench(f"--filename={drive}", f"--rw={rw}", "--bs=4k", "--iodepth=4")[0]["read"]["total_ios"] == 0
    asyncio.run(write_some(drive))
    log = tmp_path / "log"
    logs = (f"--write_lat_log={log}", "--log_offset=1")
    (job,) = bench(f"--filename={drive}", f"--rw={rw}", "--bs=4k", "--iodepth=4", "--number_ios=11", *logs)
    assert job["read"]["total_ios"] == 11
    offsets = {int(line.split(",")[4]) // 4096 for line in (tmp_path / "log_lat.1.log").read_text().splitlines()}
    allowed = {3 * 256 + block for block in range(10)} | {5 * 256}
    assert offsets == allowed if rw == "read" else offsets <= allowed
    (job,) = bench(f"--filename={drive}", f"--rw={rw}", "--bs=4k", "--number_ios=300", "--read_beyond_wp=1")
    assert job["read"]["total_ios"] == 300


def test_no_more_zones_are_open_than_allowed(drive):
    (job,) = bench(
        f"--filename={drive}", "--rw=randwrite", "--bs=4k", "--iodepth=8", "--number_ios=60", "--job_max_open_zones=2"
    )
    assert job["write"]["total_ios"] == 60
    assert sum(state != "EMPTY" for _, state in zones_of(drive)) <= 2
    arguments = ("--rw=randwrite", "--bs=32k", "--size=8m", "--numjobs=2", "--offset_increment=8m", "--iodepth=4")
    for job in bench(f"--filename={drive}", *arguments):  # two zones each, of the device's four
        assert job["error"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--zonesize=2m"], "zonesize=2097152, but the zones have 1048576 bytes"),
        (["--offset=512k"], "offset 524288 is not a multiple of the zone size, 1048576"),
        (["--size=512k"], "size 524288 is less than a zone of 1048576 bytes"),
        (["--max_open_zones=9"], "max_open_zones=9 is over the device's 4"),
        (["--bs=48k"], "is not a multiple of bs=49152"),
    ],
)
def test_what_does_not_fit_the_zones_is_refused(drive, capfd, arguments, message):
    out = io.StringIO()
    assert main([f"--filename={drive}", "--name=j", "--zonemode=zbd", "--rw=write", *arguments], stdout=out) == 1
    assert message in out.getvalue() + capfd.readouterr().err


def test_a_namespace_without_zones_and_jobs_on_the_same_zones_are_refused(drive, capfd):
    zbd = ["--name=j", "--zonemode=zbd", "--rw=write"]
    assert main(["--filename=emulated:size=16MiB", *zbd]) == 1
    assert "is not zoned" in capfd.readouterr().err
    assert main([f"--filename={drive}", *zbd, "--numjobs=2"]) == 1
    assert "write the same zones at the same time" in capfd.readouterr().err
