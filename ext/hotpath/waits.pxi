# How a queue pair waits: its settings, and the timer of its naps.

cdef extern from "<sys/timerfd.h>" nogil:
    enum: TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME

    struct timespec:
        long tv_sec, tv_nsec

    struct itimerspec:
        timespec it_interval, it_value

    int timerfd_create(int clockid, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new_value, itimerspec *old_value)

cdef extern from "<time.h>" nogil:
    enum: CLOCK_MONOTONIC

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)

cdef enum:
    NO_TIMER = -1          # not made yet
    NO_TIMERS = -2         # this process can't have one


cdef class Waits(Rings):
    """The part of a queue pair that decides how completions are waited for (waiting.h)."""

    cdef nvw_waiting waiting
    cdef int timer_fd
    cdef public object on_timer_made  # called with the descriptor, when the first nap makes it; None: no naps
    cdef public uint64_t clock_ns     # by which sleeps are measured, set by tests in virtual time; 0 = the real clock

    def __cinit__(self):
        self.timer_fd = NO_TIMER

    def __dealloc__(self):
        if self.timer_fd >= 0:
            c_close(self.timer_fd)

    def close_timer(self):
        """Nothing reads the descriptor any more. The next nap makes another."""
        if self.timer_fd >= 0:
            c_close(self.timer_fd)
        self.timer_fd = NO_TIMER

    @property
    def mode(self):
        """How completions are waited for: one of MODES."""
        return self.waiting.mode

    @mode.setter
    def mode(self, int mode):
        self.waiting.mode = mode

    @property
    def spin_ns(self):
        """The longest spin for a completion, in nanoseconds; 0 = one poll. Setting it ends
        spin_learnt."""
        return self.waiting.spin_ns

    @spin_ns.setter
    def spin_ns(self, uint64_t ns):
        self.waiting.spin_ns = ns
        self.waiting.spin_learnt = False

    @property
    def spin_learnt(self):
        """Is the longest spin longer than spin_ns where a sleep was measured to cost more?"""
        return self.waiting.spin_learnt

    @spin_learnt.setter
    def spin_learnt(self, bint learnt):
        self.waiting.spin_learnt = learnt

    @property
    def ring_at(self):
        """It is rung at once when so many are posted. Learnt; a value that is set stays."""
        return self.waiting.ringing.at

    @ring_at.setter
    def ring_at(self, uint32_t n):
        nvw_ringing_init(&self.waiting.ringing, n, n)

    @property
    def reap_limit(self):
        """Completions handled at once, before other tasks of the loop get their turn."""
        return self.waiting.reap_limit

    @reap_limit.setter
    def reap_limit(self, uint32_t n):
        self.waiting.reap_limit = n

    @property
    def guarded(self):
        """early_poll() will be called, until it returns -1."""
        return self.waiting.guarded


cdef void begin_nap(QueuePair qp) except *:
    """A waiter goes to sleep, which was just noted. Sets the timer if the command is a lone one
    whose completion is worth waking up for."""
    cdef nvw_nap *nap = &qp.waiting.nap
    cdef itimerspec when
    cdef uint64_t due
    if qp.q.n_armed != 1 or nap.at != qp.q.header.submitted:
        nap.posted_ns = 0
    if not nap.posted_ns or qp.on_timer_made is None or qp.timer_fd == NO_TIMERS:
        return
    due = nvw_nap_due(nap, qp.waiting.asleep_ns, qp.waiting.mode != NVW_HYBRID)
    if not due:
        return
    if qp.timer_fd == NO_TIMER:
        qp.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if qp.timer_fd < 0:
            qp.timer_fd = NO_TIMERS
            return
        qp.on_timer_made(qp.timer_fd)
    if qp.clock_ns:
        due += nvq_now_ns() - qp.clock_ns
    memset(&when, 0, sizeof(when))
    when.it_value.tv_sec = <long>(due // 1000000000)
    when.it_value.tv_nsec = <long>(due % 1000000000)
    timerfd_settime(qp.timer_fd, TFD_TIMER_ABSTIME, &when, NULL)


cdef void end_nap(QueuePair qp) except *:
    """The timer has ended. Polls for the completion that is due now; if it doesn't come, its
    waiter sleeps on, until the interrupt."""
    cdef nvw_waiting *w = &qp.waiting
    cdef nvw_nap *nap = &w.nap
    cdef uint64_t count, now, woken, over
    cdef uint64_t due = nap.due_ns
    cdef int turns
    if c_read(qp.timer_fd, &count, sizeof(count)) != sizeof(count) or not qp.has_memory or qp.frozen.copy != NULL or not due:
        return
    nap.due_ns = 0
    now = woken = max(sleep_clock(qp), due)
    nvw_nap_woken(nap, woken - due)
    if not nap.posted_ns or not w.asleep_ns or w.asleep_at != qp.q.header.submitted + qp.q.header.reaped:
        return      # the interrupt was earlier
    nap.taken += 1
    if nvq_pending(&qp.q):
        now -= (woken - due) // 2      # it has come while the thread woke up
    elif not nap.probe:
        over = nvw_nap_over(nap, woken)
        while now < over and not nvq_pending(&qp.q):
            for turns in range(16):
                nvq_relax()
            now = nvq_now_ns() if not qp.clock_ns else over
    if nvq_pending(&qp.q):
        nvw_nap_learn(nap, now - nap.posted_ns, False)
        w.asleep_ns = nap.posted_ns = 0
        qp.more()
