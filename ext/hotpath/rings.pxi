# The half of a queue pair that the controller sees: rings, trackers, doorbells, and their counters
# and inspection.

def queue_memory(uint32_t entries, uint32_t n_trackers, uint64_t max_transfer, uint32_t spare_entries=0):
    """Bytes of pool memory that such a queue pair takes, rings, trackers and PRP lists included."""
    cdef nvq_header header
    memset(&header, 0, sizeof(header))
    return nvq_layout(&header, entries, n_trackers, longest_list(max_transfer, spare_entries))


cdef uint32_t longest_list(uint64_t max_transfer, uint32_t spare_entries) except 0:
    """Entries to make room for: what a transfer that begins within a page takes, and
    `spare_entries` that stay free behind it. A list with any has one page at most, so that it
    never reaches the end of one.
    """
    cdef uint64_t entries = max_transfer // NVQ_PAGE + spare_entries
    if spare_entries and entries > NVQ_PAGE // 8:
        raise ValueError(f"max_transfer is {max_transfer}, more than {NVQ_PAGE // 8 - spare_entries} pages, which one page of PRP list covers")
    return <uint32_t>entries


cdef class Rings:
    """Submission and completion ring with their trackers, in `memory` (a DmaBuffer of
    queue_memory() bytes, kept until close()).

    It knows commands, but not their waiters. Arguments as for QueuePair.
    """

    cdef nvq q
    cdef readonly object memory
    cdef Py_buffer memory_view
    cdef bint has_memory
    cdef nvq_frozen frozen
    cdef nvq_found *seen  # by verify_queue(), until adopt(); or NULL
    cdef readonly uint16_t qid
    cdef readonly uint32_t entries
    cdef readonly uint64_t max_transfer
    cdef public uint8_t sgl      # the controller's SGLs of I/O commands, as in SGLS: sgl.pxi
    cdef public bint sgl_metadata      # and of their metadata (PSDT 10b)
    cdef Mmio mmio
    cdef Mmio stop_page
    cdef object doorbell_write   # callable(offset, value), where doorbells are not mapped
    cdef bint rings_later        # and it returns before the controller has the value
    cdef uint32_t sq_doorbell_offset, cq_doorbell_offset
    cdef object shadow
    cdef Py_buffer shadow_view
    cdef bint has_shadow
    cdef object transport        # owner of what q.link points to
    cdef Mmio ring_window        # memory of the controller that holds the submission ring; or None
    cdef uint64_t sq_at, cq_at   # device addresses of the rings that are there; 0: in `memory`
    cdef uint8_t *blank          # a forked child's, see disown()

    @cython.final
    cdef int open_memory(self, memory, uint16_t qid, uint32_t entries, uint32_t n_trackers, uint64_t max_transfer, uint16_t vector,
                         bint interrupts, bint attach, uint32_t n_reserved, uint32_t spare_entries) except -1:
        cdef uint32_t list_entries
        if not 2 <= entries <= NVQ_MAX_ENTRIES:
            raise ValueError(f"entries is {entries}, must be 2 to {NVQ_MAX_ENTRIES}")
        if not 1 <= n_trackers < entries:
            raise ValueError(f"n_trackers is {n_trackers}, must be 1 to {entries - 1}")
        if n_reserved >= n_trackers:
            raise ValueError(f"n_reserved is {n_reserved}, of {n_trackers} trackers")
        if max_transfer == 0 or max_transfer % NVQ_PAGE:
            raise ValueError(f"max_transfer is {max_transfer}, not a positive multiple of {NVQ_PAGE}")
        list_entries = longest_list(max_transfer, spare_entries)
        PyObject_GetBuffer(memory, &self.memory_view, PyBUF_WRITABLE)
        self.has_memory = True
        cdef nvq_header *header = <nvq_header *>self.memory_view.buf
        if not attach:
            memset(header, 0, NVQ_PAGE)
            header.qid = qid
            header.vector = vector
            header.interrupts = interrupts
            header.n_reserved = n_reserved
            needed = nvq_layout(header, entries, n_trackers, list_entries)
            if <uint64_t>self.memory_view.len < needed:
                raise ValueError(f"the queue pair needs {needed} bytes, its memory has {self.memory_view.len}")
        elif prp_list_bytes(list_entries) > header.list_bytes:
            raise ValueError(f"a queue pair with PRP lists of {header.list_bytes} bytes isn't one for transfers of {max_transfer} bytes")
        self.memory = memory
        self.qid = qid
        self.entries = entries
        self.max_transfer = max_transfer
        if nvq_open(&self.q, <uint8_t *>self.memory_view.buf, memory.iova):
            raise MemoryError()
        if not attach:
            nvq_reset(&self.q)
            header.sums = NVQ_SUMS
            header.version = NVQ_LAYOUT_VERSION
            header.magic = NVQ_MAGIC
        return 0

    @cython.final
    cdef void close_memory(self) noexcept:
        nvq_close(&self.q)
        self.ring_window = None
        self.sq_at = self.cq_at = 0
        if self.has_shadow:
            PyBuffer_Release(&self.shadow_view)
            self.has_shadow = False
        if self.has_memory:
            PyBuffer_Release(&self.memory_view)
            self.has_memory = False
        free(self.blank)
        self.blank = NULL

    def disown(self):
        """In a forked child, where the rings are the parent's: nothing of theirs is read or
        written from here on. The queue pair is empty and silent; what its waiters hold is let go
        as they go. Its commands are to be refused.
        """
        cdef nvq_header layout
        if not self.has_memory or self.blank != NULL:
            return
        self.blank = <uint8_t *>calloc(1, nvq_layout_of(&layout, self.q.entries, self.q.n_trackers, self.q.list_bytes))
        if self.blank == NULL:
            raise MemoryError()
        nvq_disown(&self.q, self.blank)
        self.ring_window = None
        self.sq_at = self.cq_at = 0

    # -- rings in memory of the controller

    def place_rings(self, Mmio window, uint64_t address, Py_ssize_t sq_offset, Py_ssize_t cq_offset=-1, *, bint attach=False):
        """The submission ring is in the controller's memory from now on, at sq_offset of `window`,
        which begins at the device address `address`; the completion ring too, unless cq_offset is
        negative. Until a reset of the queue pair, or rings_home().

        The controller doesn't know the queue; or (attach) it does, with these places.
        """
        cdef nvq_sqe *sq
        cdef nvq_cqe *cq = <nvq_cqe *>self.q.cq
        self.check_open()
        sq = <nvq_sqe *>self.ring_at(window, sq_offset, 64 * self.entries)
        if cq_offset >= 0:
            cq = <nvq_cqe *>self.ring_at(window, cq_offset, 16 * self.entries)
        if attach:
            self.q.sq, self.q.cq = sq, cq
        else:
            nvq_move_rings(&self.q, sq, cq)
        self.ring_window = window
        self.sq_at = address + sq_offset
        self.cq_at = address + cq_offset if cq_offset >= 0 else 0

    cdef char *ring_at(self, Mmio window, Py_ssize_t offset, Py_ssize_t nbytes) except NULL:
        if offset % NVQ_PAGE or offset > <Py_ssize_t>window.nbytes - nbytes:
            raise ValueError(f"a ring of {nbytes} bytes can't be at {offset:#x} of {window.nbytes:#x} bytes")
        return window._at(offset, 4, True)

    def rings_home(self):
        """Both rings are in `memory` again, with their content. The controller doesn't know the
        queue.
        """
        cdef uint8_t *base = <uint8_t *>self.memory_view.buf
        if self.has_memory and self.ring_window is not None:
            nvq_move_rings(&self.q, <nvq_sqe *>(base + self.q.header.sq_offset), <nvq_cqe *>(base + self.q.header.cq_offset))
            self.ring_window = None
            self.sq_at = self.cq_at = 0

    @cython.final
    cdef void leave_rings(self) noexcept:
        """The same without their content: a reset of the queue pair follows."""
        cdef uint8_t *base = <uint8_t *>self.memory_view.buf
        if self.ring_window is not None:
            self.q.sq = <nvq_sqe *>(base + self.q.header.sq_offset)
            self.q.cq = <nvq_cqe *>(base + self.q.header.cq_offset)
            self.ring_window = None
            self.sq_at = self.cq_at = 0

    @property
    def rings_in_cmb(self):
        """Which rings are in the controller's memory: "", "submission" or "all"."""
        return "" if self.ring_window is None else "all" if self.cq_at else "submission"

    def __dealloc__(self):
        self.close_memory()
        free(self.frozen.copy)
        free(self.seen)

    @cython.final
    cdef inline int check_open(self) except -1:
        if not self.has_memory:
            raise ValueError(f"queue pair {self.qid} is closed")
        return 0

    # -- doorbells

    cdef void leave_kick_ring(self) noexcept:
        if self.q.kick_ring != NULL:
            self.q.kick_ring = NULL
            self.mmio._no_kick_ring()

    def set_doorbells(self, Mmio mmio, uint64_t sq_offset, uint64_t cq_offset, *, int kick_fd=-1, write32=None,
                      uint32_t sq_register=0, uint32_t cq_register=0, bint later=False):
        """Where the doorbells are: in a mapped window, or (mmio None) reached by
        write32(register, value).

        later: write32() returns before the controller has the value; rang() says that it has.
        """
        self.leave_kick_ring()
        self.mmio = mmio
        self.doorbell_write = write32
        self.rings_later = later
        self.sq_doorbell_offset, self.cq_doorbell_offset = sq_register, cq_register
        # The ring is the window's, and so shared by all queue pairs of a device.
        self.q.kick_ring = mmio._kick_ring(kick_fd) if mmio is not None and kick_fd >= 0 else NULL
        if kick_fd >= 0 and self.q.kick_ring == NULL:
            kick_prepare()
        self.q.kick = kick_eventfd
        self.q.kick_fd = kick_fd
        if mmio is None:
            self.q.sq_doorbell = self.q.cq_doorbell = NULL
        else:
            self.q.sq_doorbell = <uint32_t *>mmio._at(sq_offset, 4, True)
            self.q.cq_doorbell = <uint32_t *>mmio._at(cq_offset, 4, True)
        nvq_choose_ringing(&self.q)

    def set_stop_word(self, Mmio page, uint64_t offset, uint32_t life):
        """The queue pair is lent by another process: doorbells are rung only while the word at
        `offset` of its page is `life`. Between a reset and the queue's creation, or before
        anything is submitted. The page is held until close().
        """
        self.check_open()
        word = page._at(offset, 4, False)
        self.q.life = life
        self.q.lent_word = <const uint32_t *>word
        nvq_silent(&self.q, self.q.silent)
        self.stop_page = page

    @property
    def stopped(self):
        """Are doorbells left alone, because the controller is being reset or its owner has taken
        the queue pair back?
        """
        return self.has_memory and nvq_stopped(&self.q)

    def set_transport(self, transport):
        """A transport carries the commands, in place of doorbells and DMA (hotpath/transport.h):
        `transport.binding` is the capsule that it gives for that. Held until close(). Before
        anything is submitted.
        """
        cdef nvq_binding *binding = <nvq_binding *>PyCapsule_GetPointer(transport.binding, NVQ_BINDING)
        self.check_open()
        if binding.queue[0] != NULL:
            raise ValueError("the transport has a queue pair already")
        binding.queue[0] = &self.q
        self.q.link = binding.link
        self.q.transport = binding.transport
        self.transport = transport

    def set_shadow_doorbells(self, shadow, uint64_t sq_offset, uint64_t cq_offset, uint64_t eventidx_offset):
        """Doorbell Buffer Config is in use: the buffer, this queue's two places in it, and where
        in it the EventIdx page begins.
        """
        if self.has_shadow:
            return
        PyObject_GetBuffer(shadow, &self.shadow_view, PyBUF_WRITABLE)
        self.has_shadow = True
        self.shadow = shadow
        base = <uint8_t *>self.shadow_view.buf
        self.q.sq_shadow = <uint32_t *>(base + sq_offset)
        self.q.cq_shadow = <uint32_t *>(base + cq_offset)
        self.q.sq_eventidx = <uint32_t *>(base + eventidx_offset + sq_offset)
        self.q.cq_eventidx = <uint32_t *>(base + eventidx_offset + cq_offset)
        nvq_choose_ringing(&self.q)

    def drop_shadow_doorbells(self):
        """Doorbell Buffer Config is not in use any more. Between a reset and the queue's
        creation.
        """
        if self.has_shadow:
            self.q.sq_shadow = self.q.cq_shadow = self.q.sq_eventidx = self.q.cq_eventidx = NULL
            nvq_choose_ringing(&self.q)
            PyBuffer_Release(&self.shadow_view)
            self.has_shadow = False
            self.shadow = None

    def rang(self, uint32_t register, uint32_t value):
        """The controller has the value that was given to write32(register, value). From any
        thread, before anything else is done to it.
        """
        if not self.has_memory:
            return
        if register == self.sq_doorbell_offset:
            nvq_rang_sq_to(&self.q, value)
        elif register == self.cq_doorbell_offset:
            nvq_rang_cq_to(&self.q, value)

    @cython.final
    cdef int write_sq(self) except -1:
        """The submission doorbell, where nvq_ring_sq() left it to us."""
        self.doorbell_write(self.sq_doorbell_offset, self.q.sq_tail)
        if not self.rings_later:
            nvq_rang_sq(&self.q)
        return 0

    @cython.final
    cdef int write_cq(self) except -1:
        """The completion doorbell, likewise."""
        self.doorbell_write(self.cq_doorbell_offset, self.q.cq_head)
        if not self.rings_later:
            nvq_rang_cq(&self.q)
        return 0

    @cython.final
    cdef inline void ring_now(self) except *:
        if nvq_ring_sq(&self.q):
            self.write_sq()

    @cython.final
    cdef inline void acknowledge(self) except *:
        if nvq_ring_cq(&self.q):
            self.write_cq()

    # -- the watchdog's view

    def tick(self):
        """Advances the coarse clock that stamps commands; returns its new value."""
        self.check_open()
        self.q.header.epoch += 1
        return self.q.header.epoch

    def older_than(self, uint64_t epoch):
        """[(cid, sqe)] of the commands with the controller that were sent before `epoch`.
        Omitted are those with other limits: AERs and other internal ones, and the driver's own,
        unless a predecessor has sent them.
        """
        cdef uint32_t i
        cdef nvq_tracker *tracker
        found = []
        if self.has_memory:
            for i in range(self.q.n_trackers):
                tracker = &self.q.trackers[i]
                if tracker.flags & NVQ_INTERNAL or (tracker.flags & NVQ_DRIVER and not tracker.flags & NVQ_ADOPTED):
                    continue
                if tracker.state == NVQ_ARMED and tracker.epoch < epoch:
                    found.append((tracker.cid, PyBytes_FromStringAndSize(<char *>&tracker.sqe, 64)))
        return found

    def still_out(self, cids):
        """Is any of these still with the controller?"""
        return any([self.is_out(cid) for cid in cids])

    @cython.final
    cdef bint is_out(self, uint16_t cid):
        cdef unsigned slot = cid & ((1 << self.q.slot_bits) - 1)
        if not self.has_memory or slot >= self.q.n_trackers:
            return False
        return self.q.trackers[slot].state != NVQ_FREE and self.q.trackers[slot].cid == cid

    # -- what it looks like

    @property
    def sq_iova(self):
        """Device address of the submission ring."""
        self.check_open()
        return self.sq_at or self.memory.iova + self.q.header.sq_offset

    @property
    def cq_iova(self):
        """Device address of the completion ring."""
        self.check_open()
        return self.cq_at or self.memory.iova + self.q.header.cq_offset

    @property
    def has_shadow_doorbells(self):
        """Is this queue pair's place in the Doorbell Buffer Config memory in use?"""
        return self.has_shadow

    @property
    def closed(self):
        return not self.has_memory

    @property
    def n_outstanding(self):
        """Commands in flight, including abandoned ones."""
        return self.q.n_armed

    @property
    def movable(self):
        """Is no command in flight but the driver's own, which nothing waits for? See rebind()."""
        cdef uint32_t i
        if self.q.n_armed == 0:
            return True
        for i in range(self.q.n_trackers):
            if self.q.trackers[i].state != NVQ_FREE and not self.q.trackers[i].flags & NVQ_INTERNAL:
                return False
        return True

    def outstanding_of(self, nsids=None):
        """How many commands with the controller concern these namespaces, or may concern them
        (nsid 0 and FFFFFFFFh); None: all.
        """
        cdef uint32_t i, count = 0
        if nsids is None or not self.has_memory:
            return self.q.n_armed if self.has_memory else 0
        for i in range(self.q.n_trackers):
            if self.q.trackers[i].state == NVQ_ARMED and (self.q.trackers[i].sqe.nsid in (0, 0xffffffff)
                                                          or self.q.trackers[i].sqe.nsid in nsids):
                count += 1
        return count

    @property
    def n_interrupts(self):
        """Interrupts taken through this queue pair's eventfd."""
        return self.q.header.n_interrupts if self.has_memory else 0

    @property
    def n_missed(self):
        """Early polls that found completions without an interrupt."""
        return self.q.header.n_missed if self.has_memory else 0

    @property
    def n_free(self):
        return self.q.n_free

    def record_latency(self, bint on):
        """Starts a latency histogram (fio's buckets: 29 groups of 64, an error below 1 %), or
        drops it. Costs a clock reading for each command and each reap; off unless asked for.
        """
        cdef histogram *latency = NULL
        self.check_open()
        if on:
            latency = <histogram *>malloc(sizeof(histogram))
            if latency == NULL:
                raise MemoryError()
            histogram_clear(latency)
        nvq_set_latency(&self.q, latency)

    @cython.critical_section
    def latency(self):
        """{"count", "sum", "min", "max", "stddev", "bins": {nanoseconds: count}} from submission
        to reaping, or None if it isn't recorded.
        """
        cdef histogram *h = self.q.latency
        cdef unsigned i
        if h == NULL:
            return None
        bins = {histogram_value(i): h.bucket[i] for i in range(HISTOGRAM_SIZE) if h.bucket[i]}
        return {"count": h.count, "sum": h.sum, "min": h.min if h.count else 0, "max": h.max, "stddev": histogram_deviation(h), "bins": bins}

    @cython.critical_section
    def inspect(self):
        """Positions, counters and outstanding commands as plain data. From any thread; then a
        glance, not a snapshot.
        """
        cdef nvq_header *h
        cdef uint32_t i
        cdef nvq_tracker *t
        if not self.has_memory:
            return {"qid": self.qid, "closed": True}
        h = self.q.header
        pending = []
        for i in range(self.q.n_trackers):
            t = &self.q.trackers[i]
            if t.state != NVQ_FREE:
                pending.append({"cid": t.cid, "opcode": t.sqe.opcode, "nsid": t.sqe.nsid, "tag": t.tag, "epoch": t.epoch,
                                "orphan": bool(t.flags & NVQ_ORPHAN), "internal": bool(t.flags & NVQ_INTERNAL),
                                "lba": t.sqe.cdw10 | <uint64_t>t.sqe.cdw11 << 32, "nbytes": t.data_nbytes})
        return {
            "qid": self.qid, "entries": self.q.entries, "depth": self.q.n_trackers - h.n_reserved, "vector": h.vector,
            "sq": {"tail": self.q.sq_tail, "submitted": h.submitted, "rung": h.sq_rung, "doorbells": h.n_sq_doorbells},
            "cq": {"head": self.q.cq_head, "phase": self.q.cq_phase, "reaped": h.reaped, "acknowledged": h.cq_rung,
                   "doorbells": h.n_cq_doorbells},
            "rings_in_cmb": self.rings_in_cmb, "shadow_doorbells": self.has_shadow, "doorbells_saved": h.n_shadow_only,
            "outstanding": self.q.n_armed, "free": self.q.n_free,
            "reaps": h.n_reaps, "completions_per_reap": round(<double>h.reaped / <double>h.n_reaps, 2) if h.n_reaps else 0.0, "max_batch": h.max_batch,
            "interrupts": h.n_interrupts, "spins": h.n_spins, "eager": h.n_eager, "full": h.n_full, "bounced": h.n_bounced,
            "errors": h.n_errors, "missed_interrupts": h.n_missed, "orphans": h.n_orphans, "epoch": h.epoch, "pending": pending, "latency": self.latency(),
        }
