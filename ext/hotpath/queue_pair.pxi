# A queue pair and its waiters.

@cython.final
cdef class QueuePair(Waits):
    """Rings, and the waiters for their commands. Belongs to one event loop.

    memory        the pool allocation, a DmaBuffer of queue_memory() bytes; zeroed; until close()
    qid           0 = admin
    entries       of each ring, 2 to 4096
    n_trackers    commands at once, at most entries - 1
    n_reserved    of these, reserved for a successor
    attach        continue with a predecessor's memory: check_queue() before, adopt() after
    max_transfer  bytes of one command's data, a multiple of 4096
    spare_entries of the longest PRP list, so many at the end of its page stay free
    address_map   the user memory that the device can access
    bounce        pool pages for the rest
    create_future, call_soon      of the loop that this queue pair belongs to
    command_error(status, dw0, sqe, admin) -> exception
    ready                         that loop's collection of ready callbacks, if it has one
    on_stray(qid, n, n_sqid, cid, sqid)   called for n completions of no outstanding command; n_sqid
                                  of them have the id of an outstanding command but another
                                  submission queue; cid, sqid: of the last
    """

    cdef PyObject **waiters      # a Request for each slot that is with the controller; owned references
    cdef nvb_slot *slots         # the batch of each slot
    cdef list batches            # started and not finished
    cdef list streams            # the same of sources of commands (stream.pxi)
    cdef AddressMap address_map
    cdef BounceCache bounce
    cdef object loop
    cdef unsigned long thread        # where that loop runs
    cdef object is_running           # the loop's, if it doesn't show its thread (uvloop)
    cdef object create_future, call_soon, command_error, on_stray
    cdef object line             # deque of futures: waiters for a free command id
    cdef list parked, delayed    # futures: waiters with a held namespace; whose command is sent again after a delay
    cdef uint64_t n_delays             # commands that were delayed
    cdef public object retry_delay, call_later      # (status, opcode, admin, attempts) -> seconds, or None; the loop's
    cdef int n_granted           # of those, and of the starved, how many were resumed and have not run yet
    cdef object starved          # deque of futures: waiters for a bounce page
    cdef bint growing            # on_starved() was called, and fed() is to follow
    cdef public object on_starved    # called with the missing bytes when the pool has no such bounce page: grows it, or raises
    cdef object refusal          # exception for new commands, or None
    cdef bint held               # new commands wait (drain barrier, reset)
    cdef object flush_callback, poll_callback, more_callback, turns_callback
    cdef list turns              # futures of awaiters that come back in the next iteration (turns.pxi)
    cdef list spare_futures      # to be used again
    cdef object turn_over        # a future that is done
    cdef bint turns_planned      # the loop will call turns_callback
    cdef Py_ssize_t turns_left   # awaiters that it has not resumed yet, while it runs
    cdef int event_fd
    cdef object ready                # the loop's queue of ready callbacks, if it has one (stock asyncio)
    cdef readonly object on_idle     # called when the last command completed, if not None
    cdef public object on_unwanted      # called, if not None, at an interrupt that is a successor's
    cdef readonly uint64_t busy_ns      # when that command was sent (CLOCK_MONOTONIC)
    cdef public object on_busy       # given to the loop at the first command after `watched` was cleared, if not None
    cdef public bint watched
    cdef public SharedWaits shared   # with the other queue pairs of its loop, or None
    cdef uint64_t early_ns           # of shared: when the next early poll is due; 0 = none
    cdef unsigned early_at           # which of its delays that is
    cdef bint edge                   # its eventfd is one of shared's, and not read
    cdef public object on_sleep      # called when a sleep starts that early polls must guard, from the first one on
    cdef bint pairing                # one half of a fused operation was posted, and the other wasn't yet
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
        self.parked, self.delayed = [], []
        self.starved = deque()
        self.flush_callback = self.flush
        self.poll_callback = self.poll
        self.more_callback = self.more
        self.turns_callback = self.take_turns
        self.turns, self.spare_futures = [], []
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
            nvq_thaw(&self.q, &self.frozen)
        free(self.waiters)
        free(self.slots)

    cdef inline bint is_mine(self) except -1:
        """Is this queue pair's loop running? asyncio's lookup would ask the kernel for the pid."""
        if not self.has_memory or PyThread_get_thread_ident() != self.thread:
            return False
        if self.is_running is not None:
            return self.is_running()
        return self.loop._thread_id is not None

    def bind(self, loop, bint shows_thread=False):
        """From the thread of `loop`, which is running: this is where the queue pair is used.
        shows_thread: from nvme_async.runtime.loop_internals."""
        self.loop = loop
        self.thread = PyThread_get_thread_ident()
        self.is_running = None if shows_thread else loop.is_running

    def silence(self, bint silent):
        """No doorbell is rung from now on; False: due doorbells are rung, once the controller
        knows the queue (again)."""
        nvq_silent(&self.q, silent)
        if not silent and self.has_memory:
            self.ring_now()
            self.acknowledge()
            if self.q.n_armed:
                guard(self)
                if self.waiting.mode == NVW_POLL:
                    self.plan_poll()

    def flush(self):
        """Rings for all posted commands. The loop calls it in each iteration that posted some."""
        self.waiting.flush_planned = False
        if self.has_memory:
            self.ring_late()
            if self.waiting.guarded:
                self.acknowledge()

    cdef inline void ring_late(self) except *:
        """An iteration has passed since the last post: no awaiter will ring for it any more."""
        if self.q.n_unrung:
            self.waiting.due = 0
            ring_several(self)

    # -- sending

    cdef inline bint admit(self, Request request) except -1:
        """Can a new request be sent now? Raises if the queue takes no commands."""
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
        """In another thread than the queue pair's: passes callback() to its loop and returns
        True. False: this thread, or that loop has ended."""
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
            self.n_granted -= 1      # its turn is passed to the next
        else:
            for line in (self.line, self.starved):
                try:
                    line.remove(future)
                except ValueError:
                    pass
        self.pass_on()

    cdef void grant(self) except *:
        """Resumes as many waiters as there are free command ids, in order."""
        while self.line and not self.held and <int>self.q.n_free > self.n_granted:
            future = self.line.popleft()
            if not future.done():
                self.n_granted += 1
                wake(future)

    cdef void pass_on(self) except *:
        """A granted command id, or bounce page, isn't taken: it is passed to the next waiter."""
        if self.starved:
            feed(self, 1)
        self.grant()
        if self.batches:
            go_on_with_batches(self)

    cdef void soon(self, callback) except *:
        try:
            self.call_soon(callback)
        except RuntimeError:
            # The loop has ended; only the controller's home loop uses and polls its queue pair.
            if self.loop is None or not self.loop.is_closed():
                raise

    def take_turns(self):
        """Resumes the awaiters that wait for this iteration. For the loop to call."""
        take_turns(self)

    cdef void plan_flush(self) except *:
        self.waiting.flush_planned = True
        self.soon(self.flush_callback)

    # -- completing

    cdef unsigned reap_and_deliver(self, unsigned limit) except? 0xffffffff:
        cdef unsigned n
        if self.n_delivered:      # inside deliver(): no more than done_slots has room for
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
                self.busy_ns = nvq_now_ns()
                self.soon(self.on_busy)

    def reap(self, unsigned limit=0xffff):
        """Handles up to `limit` available completions; returns how many. Rings first for posted
        commands: a caller that polls repeatedly within one event-loop iteration would otherwise
        wait for commands that were never rung."""
        cdef unsigned n = 0
        if self.has_memory:
            self.ring_late()
            n = self.reap_and_deliver(limit)
            self.acknowledge()
        return n

    def on_interrupt(self):
        """The eventfd of this queue's vector is readable: by a successor, if frozen or closed."""
        cdef uint64_t count
        if not self.has_memory or self.frozen.copy != NULL or c_read(self.event_fd, &count, sizeof(count)) != sizeof(count):
            count = 0
        interrupted(self, count)

    def on_readable(self):
        """The descriptor of a transport with shared polls is readable: this is its interrupt."""
        if self.has_memory:
            self.q.header.n_interrupts += 1
            if nvq_pending(&self.q):
                nvw_interrupted(&self.waiting)
                wakes_up(self)
                self.more()

    def more(self):
        """Drains the ring, in bounded portions so that other tasks of the loop get their turn."""
        if self.has_memory:
            if self.reap_and_deliver(self.waiting.reap_limit) == 0 and self.waiting.suspicious:
                self.q.header.n_missed -= 1      # it was late, not missed
            self.waiting.suspicious = False
            if self.q.n_unacked:
                self.acknowledge()
                nvq_before_last_poll()
            if nvq_pending_for(&self.q, False):
                self.soon(self.more_callback)

    def on_timer(self):
        """The timer is readable whose descriptor on_timer_made() was given: a nap is over."""
        end_nap(self)

    def set_event_fd(self, int fd):
        """The eventfd that on_interrupt() reads; not owned. It is non-blocking."""
        self.event_fd = fd

    cdef inline void plan_poll(self) except *:
        if not self.waiting.poll_planned:
            self.waiting.poll_planned = True
            self.soon(self.poll_callback)

    def early_poll(self, bint last):
        """Polls for completions without an interrupt. 1: something completed since the last
        time, in any way; 0: nothing; -1: nothing is in flight any more (with `last`: except
        commands without a timeout, such as event requests), and `guarded` is cleared.

        A completion found here counts as a missed interrupt, unless one has come or comes late."""
        return poll_early(self, last)

    def poll(self):
        """Polls once in each event-loop iteration while commands are in flight: in poll mode,
        and at the start of a sleep if interrupts are distrusted."""
        self.waiting.poll_planned = False
        if self.has_memory:
            ring_several(self)
            if self.reap_and_deliver(self.waiting.reap_limit) == 0:
                self.waiting.ringing.waited += 4      # an iteration of the loop, not only a poll
            if self.q.n_armed and (self.waiting.mode == NVW_POLL or nvq_now_ns() < self.waiting.polled_until):
                self.plan_poll()
            else:
                self.acknowledge()

    cdef void report_strays(self) except *:
        cdef nvq_strays strays = self.q.strays
        memset(&self.q.strays, 0, sizeof(self.q.strays))
        if self.on_stray is not None:
            self.on_stray(self.qid, strays.n, strays.n_sqid, strays.cid, strays.sqid)

    # -- the end, and exceptions to the rule

    def refuse(self, exception):
        """New commands, and those in line, fail with `exception`; None takes commands again."""
        self.refusal = exception
        if exception is not None:
            while self.line:
                future = self.line.popleft()
                if not future.done():
                    self.n_granted += 1      # they get the refusal at their turn
                    wake(future)
            end_waits(self)
            go_on_with_streams(self)
            feed(self, len(self.starved))

    def hold(self, bint held):
        """New commands wait in line while held. A frozen queue pair stays held until thawed."""
        if not self.has_memory or self.frozen.copy != NULL:
            return
        self.held = held
        self.grant()
        if not held:
            go_on_with_batches(self)
            go_on_with_streams(self)

    def go_on(self):
        """Geometries were held, released or expired: waiting requests and batches check again
        whether they may be sent. From now on no command of this queue pair is sent that a held
        or expired geometry forbids."""
        if self.has_memory and self.q.silent:
            defuse(self)
        wake_parked(self)
        go_on_with_batches(self)
        go_on_with_streams(self)

    def fail_waiters(self, exception):
        """Waiters for sent commands get `exception`; the controller keeps commands and pages."""
        fail_queue(self, exception)

    def restart(self, retryable, exception, uint32_t limit):
        """After a reset, with the rings at their start: commands with a waiter and an opcode in
        `retryable` are resent from the same pages, up to `limit` times each (not counting restarts
        before which the doorbell was not rung for them); other waiters get `exception`
        (CommandTimeout, if their command took too long; elements of batches the status Command
        Aborted By Host), and all others are released. silence(False) rings, once the controller
        knows the queue again. Returns how many were posted. Only after the controller was reset,
        as for release_all(); ends a freeze()."""
        return restart_queue(self, retryable, exception, limit)

    def release_all(self):
        """Releases every command's pages and buffers, and restarts the rings. Only after the
        controller was reset or certainly can't access memory any more: nothing else ends its
        right to write. fail_waiters() must have ended the waiters. Ends a freeze()."""
        release_queue(self)

    @cython.critical_section
    def close(self):
        """Releases the memory. Only after release_all(), or if nothing is in flight."""
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
        self.leave_kick_ring()
        self.close_memory()
        self.mmio = self.stop_page = self.memory = self.shadow = self.doorbell_write = self.transport = None
        self.flush_callback = self.poll_callback = self.more_callback = self.turns_callback = None
        self.on_sleep = self.on_busy = self.retry_delay = self.call_later = None
        self.close_timer()

    cdef Request find(self, uint16_t cid):
        cdef unsigned slot = cid & ((1 << self.q.slot_bits) - 1)
        if not self.has_memory or slot >= self.q.n_trackers or self.waiters[slot] == NULL or self.q.trackers[slot].cid != cid:
            return None
        return <Request>self.waiters[slot]

    def mark_timed_out(self, cids):
        """The driver will abort these: if that ends them, their waiters get a CommandTimeout."""
        cdef Request request
        for cid in cids:
            request = self.find(cid)
            if request is not None:
                request.timed_out = True

    def uses(self, uint64_t iova, uint64_t nbytes):
        """Does a command in flight transfer data within [iova, iova + nbytes)?"""
        return uses_memory(self, iova, nbytes)

    def left_behind(self, uint32_t nsid, uint64_t lba, uint64_t blocks):
        """Ids of abandoned commands in flight (cancelled, timed out) that may still change one
        of these blocks: a write, and any command for which this is unknown (one for the
        namespace, or for all namespaces)."""
        return left_behind(self, nsid, lba, blocks)

    def when_gone(self, cids, callback):
        """Calls callback() once, when none of these commands is in flight any more: completed,
        or ended by a reset. At once, if none is. Not after a hand-over: then they belong to the
        successor."""
        if self.leaving is None:
            self.leaving = []
        self.leaving.append((set(cids), callback))
        see_off(self)

    def when_idle(self, callback):
        """Calls callback() once, as soon as nothing is in flight: perhaps at once."""
        if self.q.n_armed == 0:
            callback()
        else:
            self.on_idle = callback

    # -- making requests

    def request(self, sqe, buffer=None, *, Py_ssize_t read_nbytes=-1, bint to_host=False, uint64_t tag=0, bint internal=False,
                bint driver=False, Geometry geometry=None):
        """A command as an awaitable whose result is (dw0, dw1, data).

        sqe          64 bytes; the command id and PRPs are filled in here
        buffer       data to send, or with to_host the place for returned data (data: its nbytes)
        read_nbytes  data is returned as a new bytes object of that length
        internal     the driver's own, and without a timeout; driver: only the former
        geometry     the command was sized for it: waits while it is held, fails once it has expired
        """
        return make_request(self, sqe, buffer, read_nbytes, to_host, tag, internal, driver, geometry)

    def batch(self, uint8_t opcode, uint32_t nsid, lbas, uint32_t blocks, data, uint32_t nbytes, *, bint to_host, uint32_t depth=0,
              uint32_t flags=0, Geometry geometry=None):
        """len(lbas) commands of `blocks` blocks each, as an awaitable.

        lbas   a buffer of 64-bit unsigned integers (held meanwhile)
        data   buffer of len(lbas) * nbytes bytes, or None for commands without data
        depth  how many are in flight at once; 0 = as many as the queue holds
        flags  bits for command dword 12 (FUA is bit 30)
        geometry  as for request()"""
        return make_batch(self, opcode, nsid, lbas, blocks, data, nbytes, to_host, depth, flags, geometry)

    @cython.critical_section
    def inspect(self):
        """Adds the number of waiters, and the learned times until the completion of a lone
        command ("latency_ns"), the next of several ("gap_ns"), and a batch ("lull_ns"); of lone
        commands that were slept for "expected_ns", what waking up takes ("wake_ns"; 0 = unknown),
        and how many naps have ended before their command."""
        found = Rings.inspect(self)
        if self.has_memory:
            found["mode"] = MODE_NAMES[self.waiting.mode]
            found["waiting"], found["waiting_for_memory"] = len(self.line) + len(self.starved), len(self.starved)
            found["held"], found["delayed"], found["delays"] = len(self.parked), len(self.delayed), self.n_delays
            found["latency_ns"], found["gap_ns"] = self.waiting.lone.gap_ns, self.waiting.next.gap_ns
            found["lull_ns"] = self.waiting.batch.gap_ns
            found["expected_ns"] = self.waiting.nap.mean_ns
            found["wake_ns"] = self.waiting.nap.wake_ns
            found["naps"] = self.waiting.nap.taken
        return found
