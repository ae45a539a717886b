# A queue pair and those who wait for it.

@cython.final
cdef class QueuePair(Rings):
    """Rings, and those who wait for what goes through them. Belongs to one event loop.

    memory        the pool allocation, a DmaBuffer of queue_memory() bytes; zeroed; kept until close()
    qid           0 = admin
    entries       of each ring, 2 to 4096
    n_trackers    commands at once, at most entries - 1
    n_reserved    of these, held back for a successor
    attach        go on with what a predecessor left in memory: check_queue() before, adopt() after
    max_transfer  bytes of one command's data, a multiple of 4096
    spare_entries of the longest PRP list, so many at the end of its page stay free
    address_map   which user memory the device reaches
    bounce        pool pages for the rest
    create_future, call_soon      of the loop that this queue pair belongs to
    command_error(status, dw0, sqe, admin) -> exception
    ready                         that loop's collection of ready callbacks, if it shows one
    on_stray(qid, n, n_sqid, cid, sqid)   called for n completions that answer nothing which is out; n_sqid of them have the id of an
                                  outstanding command, and of another submission queue; cid, sqid: of the last
    """

    cdef PyObject **waiters      # a Request for each slot that is with the controller; owned references
    cdef nvb_slot *slots         # for each slot, of which batch it is
    cdef list batches            # those that are started and not over
    cdef list streams            # the same of sources of commands (stream.pxi)
    cdef AddressMap address_map
    cdef BounceCache bounce
    cdef object loop
    cdef unsigned long thread        # where that loop runs
    cdef object is_running           # the loop's, where it doesn't show its thread (uvloop)
    cdef object create_future, call_soon, command_error, on_stray
    cdef object line             # deque of futures: who waits for a free command id
    cdef list parked             # futures: whose namespace is held
    cdef int n_granted           # of those, and of the starved, how many were told to go on and have not yet
    cdef object starved          # deque of futures: who waits for a bounce page
    cdef bint growing            # on_starved() was called, and fed() is to follow
    cdef public object on_starved    # called with a number of bytes when the pool has no such bounce page: lets the memory grow, or raises
    cdef object refusal          # exception for new commands, or None
    cdef bint held               # new commands wait (drain barrier, reset)
    cdef object flush_callback, poll_callback, more_callback
    cdef int event_fd
    cdef object ready                # the loop's queue of ready callbacks, where it shows one (stock asyncio)
    cdef nvw_waiting waiting         # how answers are waited for
    cdef readonly object on_idle     # called when the last command completed, if not None
    cdef public object on_busy       # given to the loop at the first command after `watched` was cleared, if not None
    cdef public bint watched
    cdef public object on_sleep      # called when a sleep begins that early polls are to guard, from the first one on
    cdef uint32_t n_delivered        # of the slots in q.done_slots
    cdef list leaving                # [(set of cids, callback)]: see when_gone(); or None

    def __cinit__(self):
        self.event_fd = -1

    def __init__(self, memory, *, uint16_t qid, uint32_t entries, uint32_t n_trackers, uint64_t max_transfer, AddressMap address_map,
                 BounceCache bounce, create_future, call_soon, command_error, on_stray, uint16_t vector=0, bint interrupts=True,
                 bint attach=False, uint32_t n_reserved=0, ready=None, uint32_t spare_entries=0):
        self.open_memory(memory, qid, entries, n_trackers, max_transfer, vector, interrupts, attach, n_reserved, spare_entries)
        self.address_map = address_map
        self.bounce = bounce
        self.create_future = create_future
        self.call_soon = call_soon
        self.command_error = command_error
        self.on_stray = on_stray
        self.line = deque()
        self.parked = []
        self.starved = deque()
        self.flush_callback = self.flush
        self.poll_callback = self.poll
        self.more_callback = self.more
        nvw_init(&self.waiting, entries)
        self.ready = ready
        self.waiters = <PyObject **>calloc(n_trackers, sizeof(PyObject *))
        self.slots = <nvb_slot *>calloc(n_trackers, sizeof(nvb_slot))
        self.batches = []
        self.streams = []
        if self.waiters == NULL or self.slots == NULL:
            raise MemoryError()

    def __dealloc__(self):
        cdef uint32_t i
        if self.waiters != NULL:
            for i in range(self.q.n_trackers):
                Py_XDECREF(self.waiters[i])
            free(self.waiters)
        free(self.slots)

    cdef inline bint is_mine(self) except -1:
        """Is the running loop the one that this queue pair belongs to? Without asyncio's look-up, which asks the kernel for the pid (3.11)."""
        if not self.has_memory or PyThread_get_thread_ident() != self.thread:
            return False
        if self.is_running is not None:
            return self.is_running()
        return self.loop._thread_id is not None

    @property
    def mode(self):
        """How completions are waited for: one of MODES."""
        return self.waiting.mode

    @mode.setter
    def mode(self, int mode):
        self.waiting.mode = mode

    @property
    def spin_ns(self):
        """The longest spin for a completion, in nanoseconds; 0 = one poll."""
        return self.waiting.spin_ns

    @spin_ns.setter
    def spin_ns(self, uint64_t ns):
        self.waiting.spin_ns = ns

    @property
    def ring_at(self):
        """The doorbell is rung at once when so many are posted."""
        return self.waiting.ring_at

    @ring_at.setter
    def ring_at(self, uint32_t n):
        self.waiting.ring_at = n

    @property
    def reap_limit(self):
        """Completions handled in one go, before other tasks of the loop get their turn."""
        return self.waiting.reap_limit

    @reap_limit.setter
    def reap_limit(self, uint32_t n):
        self.waiting.reap_limit = n

    @property
    def guarded(self):
        """early_poll() will be called, until it returns -1."""
        return self.waiting.guarded

    def bind(self, loop, bint shows_thread=False):
        """From the thread of `loop`, which is running: this is where the queue pair is used. shows_thread: what
        nvme_async.runtime.loop_internals says of the loop."""
        self.loop = loop
        self.thread = PyThread_get_thread_ident()
        self.is_running = None if shows_thread else loop.is_running

    def silence(self, bint silent):
        """Doorbells are left alone from now on; False: those are rung that are due, once the controller knows the queue (again)."""
        nvq_silent(&self.q, silent)
        if not silent and self.has_memory:
            self.ring_now()
            self.acknowledge()
            if self.q.n_armed:
                guard(self)
                if self.waiting.mode == NVW_POLL:
                    self.plan_poll()

    def flush(self):
        """Rings for all that was posted. The loop calls it once on each pass that posted something."""
        self.waiting.flush_planned = False
        if self.has_memory:
            self.ring_late()
            if self.waiting.guarded:
                self.acknowledge()

    cdef inline void ring_late(self) except *:
        """A pass has gone by since something was posted: nobody rings for it any more, whoever is still due."""
        if self.q.n_unrung:
            self.waiting.due = 0
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

    cdef bint ask_owner(self, callback) except -1:
        """In another thread than the queue pair's: callback() is given to its loop, and True. False: here, or that loop has ended."""
        if not self.thread or self.loop is None or PyThread_get_thread_ident() == self.thread:
            return False
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            return False
        return True

    cdef object stand_in_line(self):
        future = self.create_future()
        self.line.append(future)
        self.q.header.n_full += 1
        self.ring_now()
        guard(self)
        return future

    cdef void take_turn(self) except *:
        self.n_granted -= 1

    cdef void leave_line(self, future) except *:
        if future is None or (future.done() and not future.cancelled()):
            self.n_granted -= 1      # its turn goes to the next
        else:
            for line in (self.line, self.starved):
                try:
                    line.remove(future)
                except ValueError:
                    pass
        self.pass_on()

    cdef void grant(self) except *:
        """Tells as many in the line as there are free command ids to go on, first come first served."""
        while self.line and not self.held and <int>self.q.n_free > self.n_granted:
            future = self.line.popleft()
            if not future.done():
                self.n_granted += 1
                wake(future)

    cdef void pass_on(self) except *:
        """A command id, or a bounce page, that somebody had a right to isn't taken: it is the next one's."""
        if self.starved:
            feed(self, 1)
        self.grant()
        if self.batches:
            go_on_with_batches(self)

    cdef void soon(self, callback) except *:
        try:
            self.call_soon(callback)
        except RuntimeError:
            # The loop has ended and its queue pair is used by the controller's home alone, which looks by itself.
            if self.loop is None or not self.loop.is_closed():
                raise

    cdef void plan_flush(self) except *:
        self.waiting.flush_planned = True
        self.soon(self.flush_callback)

    # -- completing --------------------------------------------------------------------------------------------------------------------

    cdef unsigned reap_and_deliver(self, unsigned limit) except? 0xffffffff:
        cdef unsigned n
        if self.n_delivered:      # inside of deliver(): no more than done_slots has room for
            limit = min(limit, self.q.n_trackers - self.q.n_done)
        n = nvq_reap(&self.q, limit)
        if self.q.n_unacked >= self.waiting.ack_limit:
            self.acknowledge()
        if self.q.n_done:
            deliver(self)
        if self.q.strays.n:
            self.report_strays()
        return n

    cdef inline void plan_watch(self) except *:
        if not self.watched:
            self.watched = True
            if self.on_busy is not None:
                self.soon(self.on_busy)

    def reap(self, unsigned limit=0xffff):
        """Handles up to `limit` completions that are there; returns how many. Rings first for what was posted: who looks again and again
        without a pass of the loop in between would wait for commands that the controller has not been told of."""
        cdef unsigned n = 0
        if self.has_memory:
            self.ring_late()
            n = self.reap_and_deliver(limit)
            self.acknowledge()
        return n

    def on_interrupt(self):
        """The eventfd of this queue's vector is readable."""
        cdef uint64_t count
        if not self.has_memory or self.frozen.copy != NULL:
            return
        if c_read(self.event_fd, &count, sizeof(count)) == sizeof(count):
            self.q.header.n_interrupts += count
            if nvq_pending(&self.q):
                nvw_interrupted(&self.waiting)
        self.more()

    def more(self):
        """Drains the ring, in bounded portions so that other tasks of the loop get their turn."""
        if self.has_memory:
            if self.reap_and_deliver(self.waiting.reap_limit) == 0 and self.waiting.suspicious:
                self.q.header.n_missed -= 1      # it was late, and not missed
            self.waiting.suspicious = False
            if self.q.n_unacked:
                self.acknowledge()
                nvq_before_last_poll()
            if nvq_pending(&self.q):
                self.soon(self.more_callback)

    def set_event_fd(self, int fd):
        """The eventfd that on_interrupt() reads; not owned. It is non-blocking."""
        self.event_fd = fd

    cdef inline void plan_poll(self) except *:
        if not self.waiting.poll_planned:
            self.waiting.poll_planned = True
            self.soon(self.poll_callback)

    def early_poll(self, bint last):
        """Polls for what no interrupt has announced. 1: something was completed since the last time, by whatever way; 0: nothing; -1: nothing
        is out any more (with `last`: but commands without a time limit, such as event requests), and `guarded` is cleared.

        What is found here counts as a missed interrupt, unless one has come already, or comes afterwards and finds nothing."""
        return poll_early(self, last)

    def poll(self):
        """Polls once on each iteration of the loop while commands are out: in poll mode, and at the beginning of a sleep where interrupts
        are distrusted."""
        self.waiting.poll_planned = False
        if self.has_memory:
            self.ring_now()
            self.reap_and_deliver(self.waiting.reap_limit)
            if self.q.n_armed and (self.waiting.mode == NVW_POLL or nvq_now_ns() < self.waiting.polled_until):
                self.plan_poll()
            else:
                self.acknowledge()

    cdef void report_strays(self) except *:
        cdef nvq_strays strays = self.q.strays
        memset(&self.q.strays, 0, sizeof(self.q.strays))
        if self.on_stray is not None:
            self.on_stray(self.qid, strays.n, strays.n_sqid, strays.cid, strays.sqid)

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
            wake_parked(self)
            go_on_with_streams(self)
            feed(self, len(self.starved))

    def hold(self, bint held):
        """New commands wait in line while held. A frozen queue pair stays held: who thaws it says anew."""
        if not self.has_memory or self.frozen.copy != NULL:
            return
        self.held = held
        self.grant()
        if not held:
            go_on_with_batches(self)
            go_on_with_streams(self)

    def go_on(self):
        """Geometries were held, released or expired: requests and batches that waited for that look again whether they may be sent. From
        here on no command of this queue pair is sent that a held or expired geometry forbids."""
        if self.has_memory and self.q.silent:
            defuse(self)
        wake_parked(self)
        go_on_with_batches(self)
        go_on_with_streams(self)

    def fail_waiters(self, exception):
        """Everybody who waits for a sent command gets `exception`; the commands and their pages stay with the controller."""
        fail_queue(self, exception)

    def restart(self, retryable, exception, uint32_t limit):
        """After a reset, with the rings at their start: commands that somebody waits for and whose opcode is in `retryable` are sent
        again from the same pages, up to `limit` times in their life; other waiters get `exception` (CommandTimeout, if it was they who
        took too long; elements of batches get the status Command Aborted By Host), and all that is not sent again is released.
        Nothing is rung: silence(False) does, once the controller knows the queue again. Returns how many were posted.
        Only after the controller was reset, as for release_all()."""
        return restart_queue(self, retryable, exception, limit)

    def release_all(self):
        """Every command's pages and buffers go back to their owners, and the rings start anew. Only after the controller was reset or is
        known to reach memory no more: nothing else ends its right to write. Waiters must have been told by fail_waiters()."""
        release_queue(self)

    @cython.critical_section
    def close(self):
        """Lets go of the memory. Only after release_all(), or when nothing is out."""
        if not self.has_memory:
            return
        if self.q.n_armed or self.q.n_done:
            raise RuntimeError(f"queue {self.qid}: {self.q.n_armed} commands are still with the controller")
        if self.refusal is None:
            self.refusal = ValueError(f"queue pair {self.qid} is closed")
        free(self.waiters)
        free(self.slots)
        self.waiters = NULL
        self.slots = NULL
        self.close_memory()
        self.mmio = self.stop_page = self.memory = self.shadow = self.doorbell_write = self.transport = None
        self.flush_callback = self.poll_callback = self.more_callback = None
        self.on_sleep = self.on_busy = None

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
            return streams_use(self, iova, nbytes)
        return False

    def left_behind(self, uint32_t nsid, uint64_t lba, uint64_t blocks):
        """Command ids of those with the controller that nobody waits for any more (cancelled, timed out) and that may still change one of
        these blocks: a write, and any command of which this isn't known (one for the namespace, or for all namespaces)."""
        return left_behind(self, nsid, lba, blocks)

    def when_gone(self, cids, callback):
        """callback() once, when none of these commands is with the controller any more: completed, or ended by a reset. Now, if none is.
        Not after a hand-over: then they are the successor's."""
        if self.leaving is None:
            self.leaving = []
        self.leaving.append((set(cids), callback))
        see_off(self)

    def when_idle(self, callback):
        """callback() once, when the last outstanding command completed; now, if nothing is out."""
        if self.q.n_armed == 0:
            callback()
        else:
            self.on_idle = callback

    # -- making requests ---------------------------------------------------------------------------------------------------------------

    def request(self, sqe, buffer=None, *, Py_ssize_t read_nbytes=-1, bint to_host=False, uint64_t tag=0, bint internal=False,
                bint driver=False, Geometry geometry=None):
        """A command as an awaitable whose result is (dw0, dw1, data).

        sqe          64 bytes; the command id and PRPs are filled in here
        buffer       data to send, or with to_host the place for the answer (then data is its nbytes)
        read_nbytes  the answer comes as a new bytes object of that length
        internal     nobody's but the driver's, and without a time limit; driver: only the former
        geometry     what the command was sized for: it waits while that is held, and fails once it has expired
        """
        return make_request(self, sqe, buffer, read_nbytes, to_host, tag, internal, driver, geometry)

    def batch(self, uint8_t opcode, uint32_t nsid, lbas, uint32_t blocks, data, uint32_t nbytes, *, bint to_host, uint32_t depth=0,
              uint32_t flags=0, Geometry geometry=None):
        """len(lbas) commands of `blocks` blocks each, as an awaitable.

        lbas   a buffer of 64-bit unsigned integers (held meanwhile)
        data   buffer of len(lbas) * nbytes bytes, or None for commands without data
        depth  how many are out at once; 0 = as many as the queue takes
        flags  bits for command dword 12 (FUA is bit 30)
        geometry  as for request()
        """
        return make_batch(self, opcode, nsid, lbas, blocks, data, nbytes, to_host, depth, flags, geometry)

    @cython.critical_section
    def inspect(self):
        """As Rings.inspect(), and who waits: "waiting" for a command id; and what it has learnt of the time until a lone command
        ("latency_ns"), the next of several ("gap_ns"), and a batch ("lull_ns") get an answer."""
        found = Rings.inspect(self)
        if self.has_memory:
            found["mode"] = MODE_NAMES[self.waiting.mode]
            found["waiting"] = len(self.line) + len(self.starved)
            found["waiting_for_memory"] = len(self.starved)
            found["held"] = len(self.parked)
            found["latency_ns"] = self.waiting.lone.gap_ns
            found["gap_ns"] = self.waiting.next.gap_ns
            found["lull_ns"] = self.waiting.batch.gap_ns
        return found
