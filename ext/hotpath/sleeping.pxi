# Before a sleep, and the polls that end one for which no interrupt comes (waiting.h).

cdef extern from "<poll.h>" nogil:
    enum: POLLIN

    struct pollfd:
        int fd
        short events, revents

    int poll(pollfd *fds, unsigned long n, int timeout)


cdef inline uint64_t sleep_clock(QueuePair qp) noexcept:
    """The time by which sleeps are measured: the real one, unless a test has set another."""
    return qp.clock_ns if qp.clock_ns else nvq_now_ns()


cdef void before_sleep(QueuePair qp) except *:
    """A waiter is about to sleep on a Future. Posted commands will be rung, reaped completions
    are acknowledged, and then the ring is polled once more: a controller that moderates its
    interrupts may have seen the host polling, and sent none. Early polls find completions that
    it holds back longer. The caller checks whether there is still something to wait for.
    """
    if qp.q.n_unacked:
        qp.acknowledge()
        nvq_before_last_poll()
    if pending_in_turn(qp):
        qp.more()
    if qp.q.n_unrung and not qp.waiting.flush_planned:
        qp.plan_flush()
    elif not qp.q.n_unrung and qp.waiting.mode != NVW_POLL:
        nvw_falls_asleep(&qp.waiting, qp.q.header.submitted + qp.q.header.reaped, sleep_clock(qp))
        if qp.waiting.mode >= NVW_ADAPTIVE:
            begin_nap(qp)
    guard(qp)


cdef void wakes_up(QueuePair qp) noexcept:
    """An interrupt has come, and completions are there: learns from how long the sleep was."""
    cdef nvw_waiting *w = &qp.waiting
    cdef uint64_t now
    if w.asleep_ns and w.asleep_at == qp.q.header.submitted + qp.q.header.reaped:
        now = sleep_clock(qp)
        nvw_slept(w, now - w.asleep_ns)
        if w.nap.posted_ns:
            nvw_nap_learn(&w.nap, now - w.nap.posted_ns, True)
    w.asleep_ns = w.nap.posted_ns = 0


cdef int interrupted(QueuePair qp, uint64_t count) except -1:
    """So many interrupts have come, or 0 after all. A frozen or closed queue pair's are a
    successor's.
    """
    if not qp.has_memory or qp.frozen.copy != NULL:
        if qp.on_unwanted is not None:
            qp.on_unwanted()
        return 0
    if count:
        qp.q.header.n_interrupts += count
        if nvq_pending(&qp.q):
            nvw_interrupted(&qp.waiting)
            wakes_up(qp)
    qp.more()
    return 0


cdef inline void guard(QueuePair qp) except *:
    """Commands are out, and what waits for them is asleep or goes to sleep: should no interrupt
    come, early polls find the completions. Where that was so of late, polling begins at once.
    """
    if qp.waiting.distrust >= NVW_DISTRUST and qp.waiting.mode >= NVW_ADAPTIVE and nvw_poll_first(&qp.waiting, nvq_now_ns()):
        qp.plan_poll()
    if qp.waiting.mode == NVW_POLL:
        return
    # Where early polls go on already, but far apart, and something has completed since: they begin
    # anew.
    if not qp.waiting.guarded or (qp.waiting.patient and qp.q.header.reaped != qp.waiting.guarded_reaped):
        qp.waiting.guarded = True
        qp.waiting.patient = False
        if qp.on_sleep is not None:
            qp.on_sleep()


cdef bint only_internal(QueuePair qp) noexcept:
    """Are the driver's own commands without a time limit all that is out?"""
    cdef uint32_t i
    for i in range(qp.q.n_trackers):
        if qp.q.trackers[i].state == NVQ_ARMED and not qp.q.trackers[i].flags & NVQ_INTERNAL:
            return False
    return True


cdef bint readable(int fd) noexcept:
    """Has an interrupt come that wasn't taken yet?"""
    cdef pollfd entry
    entry.fd = fd
    entry.events = POLLIN
    entry.revents = 0
    return poll(&entry, 1, 0) == 1


cdef int poll_early(QueuePair qp, bint last) except -2:
    cdef bint moved
    if not qp.has_memory or not qp.q.n_armed or (last and only_internal(qp)):
        qp.waiting.guarded = False
        return -1
    qp.ring_late()
    if nvq_pending(&qp.q):
        # In poll mode, which may have begun after the sleep, no interrupt is waited for. One that
        # has come to `shared` was handled just now; a transport with shared polls can't miss one,
        # because its descriptor stays readable.
        if qp.waiting.mode != NVW_POLL and not nvq_shares_polls(&qp.q) and (qp.edge or not readable(qp.event_fd)):
            qp.q.header.n_missed += 1
            nvw_missed(&qp.waiting)
        qp.reap_and_deliver(qp.waiting.reap_limit)
        if nvq_pending(&qp.q):
            qp.soon(qp.more_callback)
    qp.acknowledge()
    moved = qp.q.header.reaped != qp.waiting.guarded_reaped
    qp.waiting.guarded_reaped = qp.q.header.reaped
    qp.waiting.patient = not moved
    return moved
