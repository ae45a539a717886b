# A queue pair and those who wait for it.

cdef enum:
    POLL = 0         # completions are looked for on each pass of the loop
    INTERRUPT = 1    # only when the vector's eventfd says so
    ADAPTIVE = 2     # both: a bounded look at once, else the eventfd

DEF EAGER_IN_A_ROW = 32   # completions without suspending, before other tasks of the loop get their turn
DEF MAX_YIELDS = 6        # passes of the loop that a command waits for without a Future
DEF MAX_PATIENCE = 64

DEF ABORT_REQUESTED = 0x07

MODES = {"poll": POLL, "interrupt": INTERRUPT, "adaptive": ADAPTIVE}


def queue_memory(uint32_t entries, uint32_t n_trackers, uint64_t max_transfer):
    """Bytes of pool memory that such a queue pair takes, rings, trackers and PRP lists included."""
    cdef nvq_header header
    memset(&header, 0, sizeof(header))
    return nvq_layout(&header, entries, n_trackers, <uint32_t>(max_transfer // NVQ_PAGE))


@cython.final
cdef class QueuePair:
    """Submission and completion ring with their trackers, in `memory` (a DmaBuffer of queue_memory() bytes, kept until close()).

    memory        the pool allocation; zeroed
    qid           0 = admin
    entries       of each ring, 2 to 4096
    n_trackers    commands at once, at most entries - 1
    n_reserved    of these, held back for a successor
    attach        go on with what a predecessor left in memory: check_queue() before, adopt() after
    max_transfer  bytes of one command's data, a multiple of 4096
    address_map   which user memory the device reaches
    bounce        pool pages for the rest
    create_future, call_soon      of the loop that this queue pair belongs to
    command_error(status, dw0, sqe, admin) -> exception
    ready                         that loop's collection of ready callbacks, if it shows one
    on_fault(text)                called once when the controller breaks the protocol
    """

    cdef nvq q
    cdef readonly object memory
    cdef Py_buffer memory_view
    cdef bint has_memory
    cdef nvq_frozen frozen
    cdef PyObject **waiters      # a Request for each slot that is with the controller; owned references
    cdef nvb_slot *slots         # for each slot, of which batch it is
    cdef list batches            # those that are started and not over
    cdef readonly uint16_t qid
    cdef readonly uint32_t entries
    cdef readonly uint64_t max_transfer
    cdef AddressMap address_map
    cdef BounceCache bounce
    cdef object loop
    cdef unsigned long thread        # where that loop runs
    cdef object is_running           # the loop's, where it doesn't show its thread (uvloop)
    cdef object create_future
    cdef object call_soon
    cdef object command_error
    cdef object on_fault
    cdef object line             # deque of futures: who waits for a free command id
    cdef int n_granted           # of those, how many were told to go on and have not yet
    cdef object refusal          # exception for new commands, or None
    cdef bint held               # new commands wait (drain barrier, reset)
    cdef bint flush_planned
    cdef bint poll_planned
    cdef object flush_callback
    cdef object poll_callback
    cdef object more_callback
    cdef object doorbell_write   # callable(offset, value), where doorbells are not mapped
    cdef uint32_t sq_doorbell_offset, cq_doorbell_offset
    cdef Mmio mmio
    cdef object shadow
    cdef Py_buffer shadow_view
    cdef bint has_shadow
    cdef int event_fd
    cdef object ready                # the loop's queue of ready callbacks, where it shows one (stock asyncio)
    cdef uint32_t credit             # eager completions left until others get their turn
    cdef int patience                # > 0: recent commands completed within a few passes of the loop
    cdef uint32_t asked, spins
    cdef uint64_t latency_ns         # of recent lone commands
    cdef uint32_t ack_limit          # CQEs taken before the CQ doorbell is rung while nobody sleeps
    cdef public int mode
    cdef public uint64_t spin_ns     # longest look of a lone command, in nanoseconds; 0 = one look
    cdef public uint32_t ring_at     # ring at once when so many are posted
    cdef public uint32_t reap_limit  # completions handled in one go, before other tasks of the loop get their turn
    cdef readonly object on_idle     # called when the last command completed, if not None
    cdef public object on_busy       # given to the loop at the first command after `watched` was cleared, if not None
    cdef public bint watched

    def __cinit__(self):
        self.event_fd = -1

    def __init__(self, memory, *, uint16_t qid, uint32_t entries, uint32_t n_trackers, uint64_t max_transfer, AddressMap address_map,
                 BounceCache bounce, create_future, call_soon, command_error, on_fault, uint16_t vector=0, bint interrupts=True,
                 bint attach=False, uint32_t n_reserved=0, ready=None):
        if not 2 <= entries <= NVQ_MAX_ENTRIES:
            raise ValueError(f"entries is {entries}, outside of 2 to {NVQ_MAX_ENTRIES}")
        if not 1 <= n_trackers < entries:
            raise ValueError(f"n_trackers is {n_trackers}, outside of 1 to {entries - 1}")
        if n_reserved >= n_trackers:
            raise ValueError(f"n_reserved is {n_reserved}, of {n_trackers} trackers")
        if max_transfer == 0 or max_transfer % NVQ_PAGE:
            raise ValueError(f"max_transfer is {max_transfer}, not a positive multiple of {NVQ_PAGE}")
        PyObject_GetBuffer(memory, &self.memory_view, PyBUF_WRITABLE)
        self.has_memory = True
        cdef nvq_header *header = <nvq_header *>self.memory_view.buf
        if not attach:
            memset(header, 0, NVQ_PAGE)
            header.qid = qid
            header.vector = vector
            header.interrupts = interrupts
            header.n_reserved = n_reserved
            needed = nvq_layout(header, entries, n_trackers, <uint32_t>(max_transfer // NVQ_PAGE))
            if <uint64_t>self.memory_view.len < needed:
                raise ValueError(f"the queue pair needs {needed} bytes, its memory has {self.memory_view.len}")
        elif prp_list_bytes(<uint32_t>(max_transfer // NVQ_PAGE)) != header.list_bytes:
            raise ValueError(f"a queue pair with PRP lists of {header.list_bytes} bytes isn't one for transfers of {max_transfer} bytes")
        self.memory = memory
        self.qid = qid
        self.entries = entries
        self.max_transfer = max_transfer
        self.address_map = address_map
        self.bounce = bounce
        self.create_future = create_future
        self.call_soon = call_soon
        self.command_error = command_error
        self.on_fault = on_fault
        self.line = deque()
        self.flush_callback = self.flush
        self.poll_callback = self.poll
        self.more_callback = self.more
        self.mode = ADAPTIVE
        self.ring_at = 16
        self.reap_limit = 256
        self.ack_limit = entries // 8 if entries >= 16 else 1
        self.credit = EAGER_IN_A_ROW
        self.patience = MAX_PATIENCE // 2
        self.ready = ready
        self.waiters = <PyObject **>calloc(n_trackers, sizeof(PyObject *))
        self.slots = <nvb_slot *>calloc(n_trackers, sizeof(nvb_slot))
        self.batches = []
        if self.waiters == NULL or self.slots == NULL or nvq_open(&self.q, <uint8_t *>self.memory_view.buf, memory.iova):
            raise MemoryError()
        if not attach:
            nvq_reset(&self.q)
            header.version = NVQ_LAYOUT_VERSION
            header.magic = NVQ_MAGIC

    def __dealloc__(self):
        cdef uint32_t i
        if self.waiters != NULL:
            for i in range(self.q.n_trackers):
                Py_XDECREF(self.waiters[i])
            free(self.waiters)
        free(self.slots)
        nvq_close(&self.q)
        free(self.frozen.copy)
        if self.has_shadow:
            PyBuffer_Release(&self.shadow_view)
        if self.has_memory:
            PyBuffer_Release(&self.memory_view)

    cdef inline bint is_mine(self) except -1:
        """Is the running loop the one that this queue pair belongs to? Without asyncio's look-up, which asks the kernel for the pid (3.11)."""
        if not self.has_memory or PyThread_get_thread_ident() != self.thread:
            return False
        if self.is_running is not None:
            return self.is_running()
        return self.loop._thread_id is not None

    def bind(self, loop):
        """From the thread of `loop`, which is running: this is where the queue pair is used."""
        self.loop = loop
        self.thread = PyThread_get_thread_ident()
        self.is_running = None if hasattr(loop, "_thread_id") else loop.is_running

    # -- doorbells ---------------------------------------------------------------------------------------------------------------------

    def set_doorbells(self, Mmio mmio, uint64_t sq_offset, uint64_t cq_offset, *, int kick_fd=-1, write32=None,
                      uint32_t sq_register=0, uint32_t cq_register=0):
        """Where the doorbells are: in a mapped window, or (mmio None) reached by write32(register, value)."""
        self.mmio = mmio
        self.doorbell_write = write32
        self.sq_doorbell_offset, self.cq_doorbell_offset = sq_register, cq_register
        self.q.kick_fd = kick_fd
        if mmio is None:
            self.q.sq_doorbell = self.q.cq_doorbell = NULL
        else:
            self.q.sq_doorbell = <uint32_t *>mmio._at(sq_offset, 4, True)
            self.q.cq_doorbell = <uint32_t *>mmio._at(cq_offset, 4, True)

    def set_shadow_doorbells(self, shadow, uint64_t sq_offset, uint64_t cq_offset, uint64_t eventidx_offset):
        """Doorbell Buffer Config is in use: the buffer, this queue's two places in it, and where in it the EventIdx page begins."""
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

    def drop_shadow_doorbells(self):
        """Doorbell Buffer Config is not in use any more. Between a reset and the queue's creation."""
        if self.has_shadow:
            self.q.sq_shadow = self.q.cq_shadow = self.q.sq_eventidx = self.q.cq_eventidx = NULL
            PyBuffer_Release(&self.shadow_view)
            self.has_shadow = False
            self.shadow = None

    def silence(self, bint silent):
        """Doorbells are left alone from now on; False: those are rung that are due, once the controller knows the queue (again)."""
        self.q.silent = silent
        if not silent and self.has_memory:
            self.ring_now()
            self.acknowledge()
            if self.mode == POLL and self.q.n_armed:
                self.plan_poll()

    cdef inline void ring_now(self) except *:
        if nvq_ring_sq(&self.q):
            self.doorbell_write(self.sq_doorbell_offset, self.q.sq_tail)
            nvq_rang_sq(&self.q)

    cdef inline void acknowledge(self) except *:
        if nvq_ring_cq(&self.q):
            self.doorbell_write(self.cq_doorbell_offset, self.q.cq_head)
            nvq_rang_cq(&self.q)

    def flush(self):
        """Rings for all that was posted. The loop calls it once on each pass that posted something."""
        self.flush_planned = False
        if self.has_memory:
            self.ring_now()

    # -- sending -----------------------------------------------------------------------------------------------------------------------

    cdef inline bint admit(self, Request request) except -1:
        """Is there a command id for a newcomer, past those who wait already? Raises when the queue takes no commands."""
        if self.refusal is not None:
            request.state = FINISHED
            request.let_go()
            raise self.refusal
        self.check_thread()
        return not self.held and <int>self.q.n_free > self.n_granted and not self.line

    cdef inline int check_thread(self) except -1:
        if self.thread and PyThread_get_thread_ident() != self.thread:
            raise RuntimeError("a request is awaited on the event loop that it was made on, and this one is another thread's")
        return 0

    cdef object stand_in_line(self):
        future = self.create_future()
        self.line.append(future)
        self.q.header.n_full += 1
        self.ring_now()
        return future

    cdef void take_turn(self) except *:
        self.n_granted -= 1

    cdef void leave_line(self, future) except *:
        if future is None or (future.done() and not future.cancelled()):
            self.n_granted -= 1      # its turn goes to the next
        else:
            try:
                self.line.remove(future)
            except ValueError:
                pass
        self.grant()

    cdef void grant(self) except *:
        """Tells as many in the line as there are free command ids to go on, first come first served."""
        while self.line and not self.held and <int>self.q.n_free > self.n_granted:
            future = self.line.popleft()
            if not future.done():
                self.n_granted += 1
                wake(future)

    cdef int start(self, Request request) except -1:
        """Sends a command for which there is a free id. Raises with nothing sent and nothing kept."""
        try:
            if self.refusal is not None:
                raise self.refusal
            if request.kind != NO_DATA:
                if request.nbytes > self.max_transfer:
                    raise ValueError(f"a transfer of {request.nbytes} bytes is over this queue's limit of {self.max_transfer}")
                self.place(request)
            self.send(request)
        except BaseException:
            request.state = FINISHED
            request.let_go()
            self.grant()
            raise
        return 0

    cdef inline int place(self, Request request) except -1:
        """Finds where the device reaches the data: in place, or in bounce pages."""
        cdef Mapping *mapping = NULL
        if request.has_view and not <uintptr_t>request.view.buf & 3:      # PRPs are dword aligned (Base 2.0, 4.1.1)
            mapping = self.address_map.find(request.view.buf, request.nbytes)
        if mapping != NULL:
            request.iova = mapping.iova + (<uintptr_t>request.view.buf - mapping.begin)
            request.offset = <uintptr_t>request.view.buf - mapping.begin if mapping.is_pool else NVQ_NO_OFFSET
            return 0
        request.bounce_class = BounceCache.size_class(request.nbytes)
        self.bounce.take(request.bounce_class, &request.piece)
        request.bounced = True
        request.flags |= NVQ_BOUNCE
        request.iova = request.piece.iova
        request.offset = request.piece.offset
        if request.kind == WRITE_FROM:
            memcpy(request.piece.data, request.view.buf, request.nbytes)
        self.q.header.n_bounced += 1
        return 0

    cdef inline int send(self, Request request) except -1:
        cdef int slot = nvq_take(&self.q)
        cdef nvq_tracker *tracker
        if slot < 0:
            raise RuntimeError(f"queue {self.qid}: no command id is free")
        tracker = &self.q.trackers[slot]
        if request.kind != NO_DATA:
            if prp_build(&request.sqe.prp1, request.iova, request.nbytes, nvq_list(&self.q, slot), nvq_list_iova(&self.q, slot),
                         self.q.list_bytes):
                nvq_put(&self.q, slot)
                raise ValueError(f"a transfer of {request.nbytes} bytes needs a longer PRP list than {self.q.list_bytes} bytes")
            tracker.data_offset = request.offset
        else:
            tracker.data_offset = NVQ_NO_OFFSET
        tracker.sqe = request.sqe
        tracker.flags = request.flags
        tracker.tag = request.tag
        tracker.data_nbytes = <uint32_t>request.nbytes
        nvq_post(&self.q, slot)
        request.slot = slot
        request.state = SENT
        Py_INCREF(request)
        self.waiters[slot] = <PyObject *>request
        self.plan_watch()
        return 0

    cdef bint look(self, Request request) except -1:
        """Right after a command was posted: rings now or plans to, completes at once what the controller has answered already, and decides
        how the command is waited for. `request.yields` passes of the loop without a Future come first where recent commands were that fast."""
        cdef bint alone = self.q.n_armed == 1
        if alone:
            self.ring_now()
        elif self.q.n_unrung >= self.ring_at:
            self.ring_now()
        elif not self.flush_planned and self.mode == INTERRUPT:
            self.plan_flush()
        if self.mode == INTERRUPT:
            return False
        if alone and self.spin_ns and self.credit and (self.ready is None or not self.ready):
            self.spin()
        if nvq_pending(&self.q):
            self.reap_and_deliver(self.reap_limit)
            if request.state == COMPLETED:
                if self.credit:
                    self.credit -= 1
                    return True
                # Other tasks of the loop have waited long enough: once around, and then the result.
                self.credit = EAGER_IN_A_ROW
                request.state = SENT
                request.answered = True
                request.yields = 1
                return False
        if self.mode == POLL:
            self.plan_poll()
        self.asked += 1
        if self.patience or not self.asked & 63:
            request.yields = MAX_YIELDS
        elif not self.flush_planned:
            self.plan_flush()
        return False

    cdef bint look_again(self, Request request) except -1:
        """The loop has come round to a command that waits without a Future."""
        self.credit = EAGER_IN_A_ROW
        if request.answered:
            request.state = COMPLETED
            return True
        if self.q.n_unrung:
            self.ring_now()
        if nvq_pending(&self.q):
            self.reap_and_deliver(self.reap_limit)
        if request.state == COMPLETED:
            if self.patience < MAX_PATIENCE:
                self.patience += 1
            return True
        if request.yields == 0:
            # It takes longer than a few passes: the next ones sleep at once, but for a probe now and then.
            self.patience = self.patience - 16 if self.patience > 16 else 0
        return False

    cdef void spin(self) except *:
        """A bounded wait for a lone command. It learns: the bound is twice what recent ones took, and it gives up where they took longer
        than spin_ns, but for a probe now and then."""
        cdef uint64_t begin, now, bound
        cdef int turns
        self.spins += 1
        if self.latency_ns > self.spin_ns and self.spins & 63:
            return
        bound = self.spin_ns if self.latency_ns * 2 + 2000 > self.spin_ns else self.latency_ns * 2 + 2000
        self.q.header.n_spins += 1
        begin = now = nvq_now_ns()
        while not nvq_pending(&self.q):
            for turns in range(16):
                nvq_relax()
                if nvq_pending(&self.q):
                    break
            else:
                now = nvq_now_ns()
                if now - begin >= bound:
                    break
        if nvq_pending(&self.q):
            # Measured to within the 16 looks between two readings of the clock.
            self.latency_ns = (self.latency_ns * 7 + (now - begin)) >> 3
        else:
            self.latency_ns = (self.latency_ns * 7 + self.spin_ns * 2) >> 3

    cdef void soon(self, callback) except *:
        try:
            self.call_soon(callback)
        except RuntimeError:
            # The loop has ended and its queue pair is used by the controller's home alone, which looks by itself.
            if self.loop is None or not self.loop.is_closed():
                raise

    cdef void plan_flush(self) except *:
        self.flush_planned = True
        self.soon(self.flush_callback)

    cdef void before_sleep(self) except *:
        """A waiter goes to sleep on a Future: what was posted must be rung, and what was reaped acknowledged, by somebody else than it."""
        if self.q.n_unacked:
            self.acknowledge()
        if self.q.n_unrung and not self.flush_planned:
            self.plan_flush()

    # -- completing --------------------------------------------------------------------------------------------------------------------

    cdef unsigned reap_and_deliver(self, unsigned limit) except? 0xffffffff:
        cdef unsigned n = nvq_reap(&self.q, limit)
        if self.q.n_unacked >= self.ack_limit:
            self.acknowledge()
        if self.q.n_done:
            self.deliver()
        if self.q.fault != NVQ_OK:
            self.report_fault()
        return n

    cdef void deliver(self) except *:
        """Gives what was reaped to those who wait."""
        cdef uint32_t i, n = self.q.n_done
        cdef unsigned slot
        cdef Request request
        cdef nvq_tracker *tracker
        cdef PyObject *waiter
        cdef bint of_batches = False
        self.q.n_done = 0
        for i in range(n):
            slot = self.q.done_slots[i]
            if self.slots[slot].batch != NULL:
                nvb_finish(&self.q, self.slots, slot)
                of_batches = True
                continue
            tracker = &self.q.trackers[slot]
            waiter = self.waiters[slot]
            self.waiters[slot] = NULL
            if waiter == NULL:
                nvq_retire(&self.q, slot)
                continue
            request = <Request>waiter
            request.status = tracker.status
            request.dw0 = tracker.dw0
            request.dw1 = tracker.dw1
            if request.state == SENT and not request.failed:
                if request.status == 0:
                    self.take_result(request)
                request.let_go()
                request.state = COMPLETED
                nvq_put(&self.q, slot)
                request.wake()
            else:
                request.let_go()
                request.state = FINISHED
                nvq_put(&self.q, slot)
            Py_DECREF(request)
        if self.line:
            self.grant()
        if of_batches:
            self.go_on_with_batches()
        if self.q.n_armed == 0 and self.on_idle is not None:
            callback, self.on_idle = self.on_idle, None
            callback()

    cdef void go_on_with_batches(self) except *:
        """Elements of sleeping batches have completed: the next ones are sent; who is done wakes up."""
        cdef Batch batch
        for batch in list(self.batches):
            if batch.b.stopped:
                self.leave_batches(batch)
            elif batch.future is not None:
                if not self.held:
                    nvb_fill(&self.q, self.slots, &batch.b, <uint32_t>(self.n_granted + len(self.line)))
                if batch.b.done == batch.b.n:
                    batch.wake()
        self.ring_now()
        if self.mode == POLL and self.q.n_armed:
            self.plan_poll()

    cdef void leave_batches(self, Batch batch) except *:
        """A batch that is over, or whose awaiter is gone, is kept until nothing of it is out."""
        if batch.b.out == 0 and batch in self.batches:
            self.batches.remove(batch)
            batch.let_go()

    cdef inline void plan_watch(self) except *:
        if not self.watched:
            self.watched = True
            if self.on_busy is not None:
                self.soon(self.on_busy)

    cdef inline void take_result(self, Request request) except *:
        if request.kind == READ_BYTES:
            try:
                request.result = PyBytes_FromStringAndSize(request.piece.data, request.nbytes)
            except MemoryError as error:
                # Its own misfortune: the others that were reaped with it get their results.
                request.failed = True
                request.result = error
                return
        elif request.kind == READ_INTO:
            if request.bounced:
                memcpy(request.view.buf, request.piece.data, request.nbytes)
            request.result = request.nbytes
        if request.raw:
            request.result = (request.dw0, request.dw1, request.result)

    def reap(self, unsigned limit=0xffff):
        """Handles up to `limit` completions that are there; returns how many."""
        cdef unsigned n = 0
        if self.has_memory:
            n = self.reap_and_deliver(limit)
            self.acknowledge()
        return n

    def on_interrupt(self):
        """The eventfd of this queue's vector is readable."""
        cdef uint64_t count
        if not self.has_memory:
            return
        if c_read(self.event_fd, &count, sizeof(count)) == sizeof(count):
            self.q.header.n_interrupts += count
        self.more()

    def more(self):
        """Drains the ring, in bounded portions so that other tasks of the loop get their turn."""
        if self.has_memory:
            self.reap_and_deliver(self.reap_limit)
            self.acknowledge()
            if nvq_pending(&self.q) and self.q.fault == NVQ_OK:
                self.soon(self.more_callback)

    def set_event_fd(self, int fd):
        """The eventfd that on_interrupt() reads; not owned. It is non-blocking."""
        self.event_fd = fd

    cdef inline void plan_poll(self) except *:
        if not self.poll_planned:
            self.poll_planned = True
            self.soon(self.poll_callback)

    def poll(self):
        """In poll mode: looks once on each pass of the loop while commands are out."""
        self.poll_planned = False
        if self.has_memory and self.q.fault == NVQ_OK:
            self.ring_now()
            self.reap_and_deliver(self.reap_limit)
            if self.q.n_armed:
                self.plan_poll()
            else:
                self.acknowledge()

    cdef void report_fault(self) except *:
        if self.on_fault is not None:
            callback, self.on_fault = self.on_fault, None
            what = "unknown or stale command id" if self.q.fault == NVQ_BAD_CID else "wrong submission queue id"
            callback(f"queue {self.qid}: completion with {what} {self.q.fault_cid:#06x}")

    # -- the end, and exceptions to the rule -------------------------------------------------------------------------------------------

    def refuse(self, exception):
        """New commands, and those in line, fail with `exception` from now on; None takes new commands again."""
        self.refusal = exception
        if exception is not None:
            while self.line:
                future = self.line.popleft()
                if not future.done():
                    self.n_granted += 1      # they see the refusal when they take their turn
                    wake(future)

    def hold(self, bint held):
        """New commands wait in line while held."""
        self.held = held
        self.grant()
        if not held:
            self.go_on_with_batches()

    def fail_waiters(self, exception):
        """Everybody who waits for a sent command gets `exception`; the commands and their pages stay with the controller."""
        cdef uint32_t i
        cdef Request request
        cdef Batch batch
        for batch in list(self.batches):
            if not batch.b.stopped:
                batch.fail(exception)
        for i in range(self.q.n_trackers):
            if self.waiters[i] != NULL:
                request = <Request>self.waiters[i]
                if request.state == SENT and not request.failed:
                    request.fail(exception)

    def restart(self, retryable, exception, uint32_t limit):
        """After a reset, with the rings at their start: commands that somebody waits for and whose opcode is in `retryable` are sent
        again from the same pages, up to `limit` times in their life; other waiters get `exception` (CommandTimeout, if it was they who
        took too long; elements of batches get the status Command Aborted By Host), and all that is not sent again is released.
        Nothing is rung: silence(False) does, once the controller knows the queue again. Returns how many were posted.
        Only after the controller was reset, as for release_all()."""
        cdef uint32_t i
        cdef Request request
        self.check_open()
        requests = []
        elements = []
        cdef Batch batch
        for i in range(self.q.n_trackers):
            if self.slots[i].batch != NULL:
                elements.append((self.q.trackers[i].position, i))
            if self.waiters[i] != NULL:
                requests.append((self.q.trackers[i].position, i, <object>self.waiters[i]))
                Py_DECREF(<object>self.waiters[i])
                self.waiters[i] = NULL
        cdef nvb_slot *slots = self.slots
        self.slots = <nvb_slot *>calloc(self.q.n_trackers, sizeof(nvb_slot))
        if self.slots == NULL:
            self.slots = slots
            raise MemoryError()
        nvq_reset(&self.q)
        requests.sort()
        elements.sort()
        count = 0
        for batch in self.batches:
            batch.b.out = 0
            if batch.b.command.opcode not in retryable and not batch.b.stopped:
                batch.fail(exception)
        for _, slot in elements:
            if nvb_again(&self.q, self.slots, &slots[<int>slot], limit):
                count += 1
        free(slots)
        for batch in list(self.batches):
            if batch.b.stopped:
                self.leave_batches(batch)
        for _, _, entry in requests:
            request = <Request>entry
            if request.state == SENT and not request.failed and request.sqe.opcode in retryable and request.attempts < limit:
                request.attempts += 1
                request.timed_out = False
                self.send(request)
                count += 1
                continue
            if request.state == SENT and not request.failed:
                request.fail(self.command_error(ABORT_REQUESTED, 0, PyBytes_FromStringAndSize(<char *>&request.sqe, 64), False, True)
                             if request.timed_out else exception)
            # Its slot is another's from now on: an awaiter that comes late must find nothing to detach from.
            request.state = FINISHED
            request.let_go()
        self.grant()
        return count

    def release_all(self):
        """Every command's pages and buffers go back to their owners, and the rings start anew. Only after the controller was reset or is
        known to reach memory no more: nothing else ends its right to write. Waiters must have been told by fail_waiters()."""
        if not self.has_memory:
            return
        cdef uint32_t i
        cdef Request request
        cdef Batch batch
        for i in range(self.q.n_trackers):
            if self.waiters[i] != NULL:
                request = <Request>self.waiters[i]
                self.waiters[i] = NULL
                request.state = FINISHED      # an awaiter that comes late must find nothing to detach from
                request.let_go()
                Py_DECREF(request)
            if self.slots[i].batch != NULL:
                if self.slots[i].batch.bounced:
                    self.slots[i].batch.pieces[self.slots[i].batch.n_pieces] = self.slots[i].piece
                    self.slots[i].batch.n_pieces += 1
                self.slots[i].batch = NULL
        for batch in list(self.batches):
            batch.b.out = 0
            batch.b.stopped = True
            self.leave_batches(batch)
        nvq_reset(&self.q)
        self.grant()

    def close(self):
        """Lets go of the memory. Only after release_all(), or when nothing is out."""
        if not self.has_memory:
            return
        if self.q.n_armed or self.q.n_done:
            raise RuntimeError(f"queue {self.qid}: {self.q.n_armed} commands are still with the controller")
        if self.refusal is None:
            self.refusal = ValueError(f"queue pair {self.qid} is closed")
        nvq_close(&self.q)
        free(self.waiters)
        free(self.slots)
        self.waiters = NULL
        self.slots = NULL
        if self.has_shadow:
            PyBuffer_Release(&self.shadow_view)
            self.has_shadow = False
        PyBuffer_Release(&self.memory_view)
        self.has_memory = False
        if self.refusal is None:
            self.refusal = RuntimeError(f"queue pair {self.qid} is closed")
        self.mmio = self.memory = self.shadow = self.doorbell_write = None
        self.flush_callback = self.poll_callback = self.more_callback = None

    # -- the watchdog's view -----------------------------------------------------------------------------------------------------------

    def tick(self):
        """Advances the coarse clock that stamps commands; returns its new value."""
        self.check_open()
        self.q.header.epoch += 1
        return self.q.header.epoch

    def older_than(self, uint64_t epoch):
        """[(cid, sqe)] of the commands with the controller that were sent before `epoch`, AERs and other internal ones left out."""
        cdef uint32_t i
        cdef nvq_tracker *tracker
        found = []
        if self.has_memory:
            for i in range(self.q.n_trackers):
                tracker = &self.q.trackers[i]
                if tracker.state == NVQ_ARMED and tracker.epoch < epoch and not tracker.flags & NVQ_INTERNAL:
                    found.append((tracker.cid, PyBytes_FromStringAndSize(<char *>&tracker.sqe, 64)))
        return found

    cdef Request find(self, uint16_t cid):
        cdef unsigned slot = cid & ((1 << self.q.slot_bits) - 1)
        if not self.has_memory or slot >= self.q.n_trackers or self.waiters[slot] == NULL or self.q.trackers[slot].cid != cid:
            return None
        return <Request>self.waiters[slot]

    def mark_timed_out(self, cids):
        """These are about to be aborted by us: should they complete as aborted, their waiters get a CommandTimeout."""
        cdef Request request
        for cid in cids:
            request = self.find(cid)
            if request is not None:
                request.timed_out = True

    def still_out(self, cids):
        """Is any of these still with the controller?"""
        return any([self.is_out(cid) for cid in cids])

    cdef bint is_out(self, uint16_t cid):
        cdef unsigned slot = cid & ((1 << self.q.slot_bits) - 1)
        if not self.has_memory or slot >= self.q.n_trackers:
            return False
        return self.q.trackers[slot].state != NVQ_FREE and self.q.trackers[slot].cid == cid

    cdef inline int check_open(self) except -1:
        if not self.has_memory:
            raise ValueError(f"queue pair {self.qid} is closed")
        return 0

    def uses(self, uint64_t iova, uint64_t nbytes):
        """Does a command with the controller move data within [iova, iova + nbytes)?"""
        cdef uint32_t i
        cdef Request request
        cdef Batch batch
        if self.has_memory:
            for batch in self.batches:
                if batch.b.data != NULL and not batch.b.bounced:
                    if batch.b.iova < iova + nbytes and iova < batch.b.iova + <uint64_t>batch.b.nbytes * batch.b.n:
                        return True
            for i in range(self.q.n_trackers):
                if self.waiters[i] != NULL:
                    request = <Request>self.waiters[i]
                    if request.nbytes and request.iova < iova + nbytes and iova < request.iova + request.nbytes:
                        return True
        return False

    @property
    def sq_iova(self):
        """Device address of the submission ring."""
        self.check_open()
        return self.memory.iova + self.q.header.sq_offset

    @property
    def cq_iova(self):
        """Device address of the completion ring."""
        self.check_open()
        return self.memory.iova + self.q.header.cq_offset

    @property
    def has_shadow_doorbells(self):
        """Is this queue pair's place in the Doorbell Buffer Config memory in use?"""
        return self.has_shadow

    @property
    def closed(self):
        return not self.has_memory

    @property
    def n_outstanding(self):
        """Commands with the controller, those whose waiter is gone included."""
        return self.q.n_armed

    @property
    def n_free(self):
        return self.q.n_free

    def when_idle(self, callback):
        """callback() once, when the last outstanding command completed; now, if nothing is out."""
        if self.q.n_armed == 0:
            callback()
        else:
            self.on_idle = callback

    # -- making requests ---------------------------------------------------------------------------------------------------------------

    def request(self, sqe, buffer=None, *, Py_ssize_t read_nbytes=-1, bint to_host=False, uint64_t tag=0, bint internal=False,
                bint driver=False):
        """A command as an awaitable whose result is (dw0, dw1, data).

        sqe          64 bytes; the command id and PRPs are filled in here
        buffer       data to send, or with to_host the place for the answer (then data is its nbytes)
        read_nbytes  the answer comes as a new bytes object of that length
        internal     nobody's but the driver's, and without a time limit; driver: only the former
        """
        cdef Request request = Request.__new__(Request)
        cdef const unsigned char[::1] raw = sqe
        if raw.shape[0] != 64:
            raise ValueError(f"a command is 64 bytes long, not {raw.shape[0]}")
        memcpy(&request.sqe, &raw[0], 64)
        request.qp = self
        request.tag = tag
        request.raw = True
        request.flags = (NVQ_INTERNAL if internal else 0) | (NVQ_DRIVER if driver else 0)
        if buffer is not None:
            request.hold(buffer, to_host)
            request.nbytes = request.view.len
            request.kind = READ_INTO if to_host else WRITE_FROM
            request.flags |= NVQ_TO_HOST if to_host else NVQ_FROM_HOST
            if request.nbytes == 0:
                request.kind = NO_DATA
        elif read_nbytes > 0:
            request.nbytes = read_nbytes
            request.kind = READ_BYTES
            request.flags |= NVQ_TO_HOST
        return request

    def batch(self, uint8_t opcode, uint32_t nsid, lbas, uint32_t blocks, data, uint32_t nbytes, *, bint to_host, uint32_t depth=0,
              uint32_t flags=0):
        """len(lbas) commands of `blocks` blocks each, as an awaitable.

        lbas   a buffer of 64-bit unsigned integers (held meanwhile)
        data   buffer of len(lbas) * nbytes bytes, or None for commands without data
        depth  how many are out at once; 0 = as many as the queue takes
        flags  bits for command dword 12 (FUA is bit 30)
        """
        cdef Batch batch = Batch.__new__(Batch)
        self.check_open()
        batch.qp = self
        export(lbas, &batch.lbas_view, False)
        batch.has_lbas = True
        if batch.lbas_view.itemsize != 8 and batch.lbas_view.itemsize != 1 or batch.lbas_view.len % 8:
            raise ValueError(f"lbas has items of {batch.lbas_view.itemsize} bytes, 64-bit integers are needed")
        if batch.lbas_view.len // 8 >= 1 << 32:
            raise ValueError(f"{batch.lbas_view.len // 8} elements are over the limit of 2**32 - 1")
        batch.b.n = <uint32_t>(batch.lbas_view.len // 8)
        batch.b.lbas = <const uint64_t *>batch.lbas_view.buf
        batch.b.nbytes = nbytes
        batch.b.depth = min(depth, self.q.n_trackers) if depth else self.q.n_trackers
        if data is not None:
            if nbytes > self.max_transfer or nbytes == 0:
                raise ValueError(f"a transfer of {nbytes} bytes is outside of 1 to this queue's limit of {self.max_transfer}")
            export(data, &batch.data_view, to_host)
            batch.has_data = True
            if <uint64_t>batch.data_view.len != <uint64_t>nbytes * batch.b.n:
                raise ValueError(f"{batch.b.n} elements of {nbytes} bytes need {nbytes * batch.b.n} bytes, the buffer has "
                                 f"{batch.data_view.len}")
            batch.b.data = <uint8_t *>batch.data_view.buf
            batch.b.flags = NVQ_TO_HOST if to_host else NVQ_FROM_HOST
        batch.b.command.opcode = opcode
        batch.b.command.nsid = nsid
        batch.b.command.cdw12 = (blocks - 1) | flags
        batch.statuses = array("H", bytes(2 * batch.b.n))
        PyObject_GetBuffer(batch.statuses, &batch.status_view, PyBUF_WRITABLE)
        batch.has_status = True
        batch.b.status = <uint16_t *>batch.status_view.buf
        return batch

    def record_latency(self, bint on):
        """Starts a latency histogram (fio's buckets: 29 groups of 64, an error below 1 %), or drops it. Costs a clock reading for each
        command and each reap; off unless asked for."""
        self.check_open()
        free(self.q.latency)
        self.q.latency = NULL
        if on:
            self.q.latency = <histogram *>malloc(sizeof(histogram))
            if self.q.latency == NULL:
                raise MemoryError()
            histogram_clear(self.q.latency)

    def latency(self):
        """{"count", "sum", "min", "max", "stddev", "bins": {nanoseconds: count}} from submission to reaping, or None if it isn't recorded."""
        cdef histogram *h = self.q.latency
        cdef unsigned i
        if h == NULL:
            return None
        bins = {histogram_value(i): h.bucket[i] for i in range(HISTOGRAM_SIZE) if h.bucket[i]}
        return {"count": h.count, "sum": h.sum, "min": h.min if h.count else 0, "max": h.max, "stddev": histogram_deviation(h), "bins": bins}

    def inspect(self):
        """Positions, counters and outstanding commands as plain data. From any thread; then a glance, not a snapshot."""
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
            "mode": {POLL: "poll", INTERRUPT: "interrupt", ADAPTIVE: "adaptive"}[self.mode],
            "sq": {"tail": self.q.sq_tail, "submitted": h.submitted, "rung": h.sq_rung, "doorbells": h.n_sq_doorbells},
            "cq": {"head": self.q.cq_head, "phase": self.q.cq_phase, "reaped": h.reaped, "doorbells": h.n_cq_doorbells},
            "shadow_doorbells": self.has_shadow, "doorbells_saved": h.n_shadow_only,
            "outstanding": self.q.n_armed, "free": self.q.n_free, "waiting": len(self.line),
            "reaps": h.n_reaps, "completions_per_reap": round(<double>h.reaped / <double>h.n_reaps, 2) if h.n_reaps else 0.0, "max_batch": h.max_batch,
            "interrupts": h.n_interrupts, "spins": h.n_spins, "eager": h.n_eager, "full": h.n_full, "bounced": h.n_bounced,
            "errors": h.n_errors, "orphans": h.n_orphans, "epoch": h.epoch, "pending": pending, "latency": self.latency(),
        }
