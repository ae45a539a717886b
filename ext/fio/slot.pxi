@cython.final
cdef class Generator:
    cdef generator g
    cdef readonly int shift            # of the block size: offset >> shift is the LBA

    def __init__(
        self, *, seed, start, length, block_size, sizes, order="sequential", parameter=0.0, direction=0,
        read_share=None, align=0, skip=0, run=1, step=0, random_shares=None,
        zones=(), strides=None,
    ):
        cdef uint32_t d
        cdef uint64_t below
        memset(&self.g, 0, sizeof(self.g))
        if block_size <= 0 or block_size & (block_size - 1):
            raise ValueError(f"block size {block_size} is not a power of two")
        self.shift = block_size.bit_length() - 1
        self.g.order = <io_order>ORDERS[order]
        self.g.parameter = parameter
        self.g.mixed = read_share is not None
        self.g.read_below = <uint64_t>((read_share or 0.0) * 4294967296.0)
        self.g.direction = direction
        self.g.start, self.g.length, self.g.step = start, length, step or block_size
        self.g.steer = -1
        for d in range(DIRECTIONS):
            self.g.random_below[d] = <uint64_t>((1.0 if random_shares is None else random_shares[d]) * 4294967296.0)
        self.g.skip, self.g.run = skip, run
        if len(sizes) != DIRECTIONS:
            raise ValueError(f"sizes for {len(sizes)} directions, must be for {DIRECTIONS}")
        for d in range(DIRECTIONS):
            table = sizes[d]
            if not 0 < len(table) <= SPLITS:
                raise ValueError(f"{len(table)} block sizes, must be 1 to {SPLITS}")
            self.g.sizes[d].min = min(table)[0]
            self.g.sizes[d].max = max(table)[0]
            self.g.sizes[d].step = self.g.sizes[d].min
            if len(table) == 2 and table[0][1] is None:     # a range, not a table of shares
                continue
            below = 0
            for nbytes, share in table:
                self.g.sizes[d].nbytes[self.g.sizes[d].splits] = nbytes
                below += <uint64_t>(share * 4294967296.0)
                self.g.sizes[d].below[self.g.sizes[d].splits] = below
                self.g.sizes[d].splits += 1
            if len(table) == 1:
                self.g.sizes[d].splits = 0
        if start % block_size or any(nbytes % block_size for table in sizes for nbytes, _ in table):
            raise ValueError(f"offsets and sizes must be multiples of the block size, {block_size}")
        smallest = min(self.g.sizes[d].min for d in range(DIRECTIONS))
        largest_min = max(self.g.sizes[d].min for d in range(DIRECTIONS))
        self.g.align = align or smallest
        if self.g.align % block_size:
            raise ValueError(f"alignment {align} is not a multiple of the block size, {block_size}")
        if length < largest_min:
            raise ValueError(f"the region of {length} bytes is smaller than one block of {largest_min} bytes")
        self.g.units = (length - largest_min) // self.g.align + 1
        if order == "zoned":
            self._set_zones(zones)
        if strides is not None:
            size, zone_range, stride = strides
            self.g.strides.size, self.g.strides.range, self.g.strides.stride = size, zone_range, stride
            self.g.strides.start, self.g.strides.end = start, start + length
            self.g.length = zone_range
            self.g.units = (zone_range - largest_min) // self.g.align + 1
        generator_start(&self.g, seed)

    cdef _set_zones(self, zones):
        cdef uint64_t below = 0, first = 0, n
        if not 0 < len(zones) <= ZONES:
            raise ValueError(f"{len(zones)} zones, must be 1 to {ZONES}")
        for share, part in zones:
            n = <uint64_t>(part * <double>self.g.units)
            n = min(max(1, n), self.g.units - first)
            if not n:
                raise ValueError(f"{len(zones)} zones are too many for {self.g.units} places")
            below += <uint64_t>(share * 4294967296.0)
            self.g.zones.below[self.g.zones.count] = below
            self.g.zones.first[self.g.zones.count], self.g.zones.units[self.g.zones.count] = first, n
            self.g.zones.count += 1
            first += n

    @property
    def units(self):
        return self.g.units

    def next(self):
        cdef io io
        generator_next(&self.g, &io)
        return io.direction, io.offset, io.nbytes

    def restart(self, uint64_t seed):
        generator_start(&self.g, seed)


@cython.final
cdef class Recorder:
    cdef recorder r

    def __cinit__(self, *, timed=True, histograms=True, limit_bytes=None, limit_ios=None, log=False, log_window_ns=0,
                  log_max=False):
        cdef int d
        memset(&self.r, 0, sizeof(self.r))
        for d in range(DIRECTIONS + 1):
            histogram_clear(&self.r.latency[d])
        for d in range(DIRECTIONS):
            histogram_clear(&self.r.slat[d])
            histogram_clear(&self.r.clat[d])
        self.r.timed, self.r.histograms = timed, histograms
        self.r.limit_bytes = UINT64_MAX if limit_bytes is None else limit_bytes
        self.r.limit_ios = UINT64_MAX if limit_ios is None else limit_ios
        self.r.deadline = UINT64_MAX
        self.r.log.enabled, self.r.log.window, self.r.log.keep_max = log, log_window_ns, log_max

    def __dealloc__(self):
        free(self.r.log.entries)

    def arm(self, *, measure_from=0, deadline=None):
        self.r.armed, self.r.measure_from = now_ns(), measure_from
        self.r.deadline = UINT64_MAX if deadline is None else deadline

    def stop(self):
        self.r.stop = True

    def expire(self):
        self.r.deadline = 0

    def renew(self):
        self.r.claimed_bytes = self.r.claimed_ios = 0

    @property
    def stopped(self):
        return self.r.stop

    @property
    def in_flight(self):
        return self.r.in_flight

    @property
    def began(self):
        return self.r.began or None

    @property
    def measuring(self):
        return self.r.measuring

    @property
    def deadline(self):
        return None if self.r.deadline == UINT64_MAX else self.r.deadline

    @property
    def claimed(self):
        return self.r.claimed_bytes, self.r.claimed_ios

    @property
    def ios(self):
        return tuple(self.r.ios[d] for d in range(DIRECTIONS))

    @property
    def nbytes(self):
        return tuple(self.r.nbytes[d] for d in range(DIRECTIONS))

    @property
    def issued(self):
        return tuple(self.r.issued[d] for d in range(DIRECTIONS + 1))

    @property
    def depths(self):
        return tuple(self.r.depths[i] for i in range(MAP_SIZE))

    @property
    def batches(self):
        if self.r.submit_calls:
            return (tuple(self.r.submits[i] for i in range(MAP_SIZE)),
                    tuple(self.r.completes[i] for i in range(MAP_SIZE)))
        # One await for one I/O: each was submitted, and came back, by itself.
        ones = (0, sum(self.r.ios[d] for d in range(DIRECTIONS)), 0, 0, 0, 0, 0)
        return ones, ones

    def latency(self, int direction):
        cdef Histogram copy = Histogram()
        if not 0 <= direction <= DIRECTIONS:
            raise ValueError(f"direction {direction} is not 0 to {DIRECTIONS}")
        histogram_merge(&copy.h, &self.r.latency[direction])
        return copy

    def submission(self, int direction):
        cdef Histogram slat = Histogram(), clat = Histogram()
        if not 0 <= direction < DIRECTIONS:
            raise ValueError(f"direction {direction} is not 0 to {DIRECTIONS - 1}")
        histogram_merge(&slat.h, &self.r.slat[direction])
        histogram_merge(&clat.h, &self.r.clat[direction])
        return slat, clat

    def record_sync(self, uint64_t ns):
        self.r.issued[DIRECTION_SYNC] += 1
        if self.r.timed:
            histogram_add_many(&self.r.latency[DIRECTION_SYNC], ns, 1)

    def log_entries(self):
        cdef size_t i
        cdef log_entry *e
        if self.r.log.window:
            # The last window is as long as it came to be.
            self.r.log.window_end = min(self.r.log.window_end, self.r.now)
            log_close_window(&self.r.log)
        entries = []
        for i in range(self.r.log.count):
            e = &self.r.log.entries[i]
            entries.append((e.time, e.latency, e.slat, e.nbytes, e.ios, e.offset, e.direction))
        return entries


@cython.final
cdef class Slot:
    cdef Recorder recorder
    cdef Generator generator
    cdef io io
    cdef uint64_t started, submitted_at
    cdef bint busy
    cdef public bint retrim            # rw=trimwrite: each trim is followed by a write of the same blocks
    cdef bint owes_write

    def __cinit__(self, Recorder recorder not None, Generator generator not None, *, bint trim_then_write=False):
        self.recorder, self.generator = recorder, generator
        self.retrim = trim_then_write
        memset(&self.io, 0, sizeof(self.io))

    def __iter__(self):
        return self

    # The whole benchmark loop of the plain cases: the clock reading that ends one I/O begins the
    # next.
    def __next__(self):
        cdef recorder *r = &self.recorder.r
        cdef uint64_t now = recorder_clock(r)
        cdef int64_t lba
        if self.busy:
            self.busy = False
            recorder_finish(r, &self.io, self.started, 0, now)
        if not recorder_claim(r, &self.generator.g, &self.io, now):
            raise StopIteration
        self.busy = True
        self.started = now
        recorder_start(r, &self.io, now)
        lba = <int64_t>(self.io.offset >> self.generator.shift)
        return lba if self.io.direction == DIRECTION_READ else ~lba

    def claim(self, int direction=-1):
        cdef recorder *r = &self.recorder.r
        self.generator.g.steer = direction
        if self.owes_write:
            self.owes_write = False
            self.io.direction = DIRECTION_WRITE
            return DIRECTION_WRITE
        if not recorder_claim(r, &self.generator.g, &self.io, now_ns()):
            return -1
        if self.retrim:                # the budget pays for both at once, or others would begin more than can be ended
            self.owes_write = True
            r.claimed_bytes += self.io.nbytes
            r.claimed_ios += 1
        return self.io.direction

    def aim(self, uint32_t direction, uint64_t offset, uint32_t nbytes):
        self.io.direction, self.io.offset, self.io.nbytes = direction, offset, nbytes

    def begin(self):
        self.started = recorder_clock(&self.recorder.r)
        self.submitted_at = 0
        self.busy = True
        recorder_start(&self.recorder.r, &self.io, self.started)

    def submitted(self):
        self.submitted_at = now_ns()

    def end(self):
        if self.busy:
            self.busy = False
            recorder_finish(&self.recorder.r, &self.io, self.started, self.submitted_at, recorder_clock(&self.recorder.r))

    def abandon(self):
        if self.busy:
            self.busy = False
            self.recorder.r.in_flight -= 1

    @property
    def direction(self):
        return self.io.direction

    @property
    def offset(self):
        return self.io.offset

    @property
    def nbytes(self):
        return self.io.nbytes

    @property
    def lba(self):
        return self.io.offset >> self.generator.shift

    @property
    def blocks(self):
        return self.io.nbytes >> self.generator.shift


@cython.final
cdef class Batch:
    cdef Recorder recorder
    cdef Generator generator
    cdef uint32_t depth
    cdef uint32_t count[2]
    cdef uint32_t nbytes[2]
    cdef uint64_t started

    def __cinit__(self, Recorder recorder not None, Generator generator not None, uint32_t depth):
        self.recorder, self.generator, self.depth = recorder, generator, depth
        self.nbytes[0], self.nbytes[1] = generator.g.sizes[0].min, generator.g.sizes[1].min

    def fill(self, uint64_t[::1] reads not None, uint64_t[::1] writes not None):
        cdef recorder *r = &self.recorder.r
        cdef uint64_t now = now_ns()
        cdef Py_ssize_t room = min(reads.shape[0], writes.shape[0]), i
        cdef uint64_t lba
        cdef io io
        self.count[0] = self.count[1] = 0
        for i in range(room):
            if not recorder_claim(r, &self.generator.g, &io, now):
                break
            lba = io.offset >> self.generator.shift
            if io.direction == DIRECTION_READ:
                reads[self.count[0]] = lba
            else:
                writes[self.count[1]] = lba
            self.count[io.direction & 1] += 1
            recorder_start(r, &io, now)
            r.in_flight -= r.in_flight > self.depth    # the driver keeps this many in flight, and no more
        self.started = now
        return self.count[0], self.count[1]

    def end(self):
        cdef recorder *r = &self.recorder.r
        cdef uint64_t now = now_ns(), latency = now - self.started
        cdef uint32_t n, d
        cdef io io
        r.in_flight = 0
        for d in range(2):
            n = self.count[d]
            if not n:
                continue
            r.ios[d] += n
            r.nbytes[d] += <uint64_t>n * self.nbytes[d]
            r.submits[batch_bucket(n)] += 1
            r.completes[batch_bucket(n)] += 1
            r.submit_calls += 1
            r.complete_calls += 1
            if r.timed and r.histograms:
                histogram_add_many(&r.latency[d], latency, n)

    def abandon(self):
        self.recorder.r.in_flight = 0
