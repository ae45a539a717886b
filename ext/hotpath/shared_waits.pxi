# What the queue pairs of one event loop have in common while they wait.

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLET

    ctypedef union epoll_data "epoll_data_t":
        uint64_t u64

    struct epoll_event:
        uint32_t events
        epoll_data data

    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef extern from "<errno.h>" nogil:
    int errno
    enum: EEXIST

cdef enum:
    INTERRUPTS_AT_ONCE = 64      # of those the loop sees the rest in its next iteration
    MOST_EARLY_POLLS = 16


@cython.final
cdef class SharedWaits:
    """Of one event loop's thread, with these parts:

    - One epoll descriptor for the interrupts of many queue pairs (open(), add(), remove()). The
      loop sees one readable descriptor, and take() handles them all, without a call of Python for
      each. It is edge-triggered, so that no eventfd is read.
    - The early polls of all queue pairs (sleeping.pxi): one timer of the loop for all (guard(),
      poll_early()). delays: seconds from one to the next while nothing completes.
    - Which of them has sent a command last: while another has some in flight, a queue pair doesn't
      spin for a lone one.
    """

    cdef int epoll_fd
    cdef int pid                         # of the process that made it: a forked child shares it
    cdef list members                    # [slot]: the queue pair; None: free
    cdef dict slots                      # {eventfd: slot}
    cdef list guarded                    # queue pairs with early polls
    cdef uint64_t[MOST_EARLY_POLLS] delays
    cdef unsigned n_delays
    cdef QueuePair last                  # with commands sent

    def __cinit__(self):
        self.epoll_fd = -1

    def __init__(self, delays):
        if not 1 <= len(delays) <= MOST_EARLY_POLLS:
            raise ValueError(f"delays has {len(delays)} values, must have 1 to {MOST_EARLY_POLLS}")
        self.n_delays = <unsigned>len(delays)
        for i, seconds in enumerate(delays):
            self.delays[i] = <uint64_t>(seconds * 1e9)
        self.members, self.slots, self.guarded = [], {}, []

    def __dealloc__(self):
        if self.epoll_fd >= 0:
            c_close(self.epoll_fd)

    def open(self):
        """Returns the descriptor, which is readable while take() has something to do; owned by
        this object until close(). OSError if the process can't have one."""
        if self.epoll_fd < 0:
            self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
            if self.epoll_fd < 0:
                raise OSError(errno, os.strerror(errno), "epoll_create1")
            self.pid = os.getpid()
        return self.epoll_fd

    def close(self):
        """Takes no more interrupts. The loop no longer reads the descriptor."""
        if self.epoll_fd >= 0:
            c_close(self.epoll_fd)
        self.epoll_fd = -1
        self.members, self.slots = [], {}

    @property
    def is_open(self):
        return self.epoll_fd >= 0

    def add(self, int fd, QueuePair qp not None):
        """What this eventfd signals are interrupts of the queue pair. Also for an fd that was
        added before. One that is signalled already counts. OSError if the kernel can watch no
        more."""
        cdef epoll_event event
        if self.epoll_fd < 0:
            raise ValueError("SharedWaits is not open")
        slot = self.slots.get(fd)
        if slot is None:
            slot = self.members.index(None) if None in self.members else len(self.members)
        memset(&event, 0, sizeof(event))
        event.events = EPOLLIN | <uint32_t>EPOLLET
        event.data.u64 = slot
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, fd, &event) and (errno != EEXIST or epoll_ctl(self.epoll_fd, EPOLL_CTL_MOD, fd, &event)):
            raise OSError(errno, os.strerror(errno), "epoll_ctl")
        if slot == len(self.members):
            self.members.append(None)
        self.members[slot] = qp
        self.slots[fd] = slot
        qp.edge = True

    def remove(self, int fd):
        """Does nothing for one that wasn't added. In a forked child the parent's interrupts stay
        as they are."""
        slot = self.slots.pop(fd, None)
        if slot is None:
            return
        (<QueuePair>self.members[slot]).edge = False
        self.members[slot] = None
        if self.epoll_fd >= 0 and self.pid == os.getpid():
            epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, fd, NULL)

    def take(self):
        """Handles the interrupts that have come, at most INTERRUPTS_AT_ONCE. An exception from
        one doesn't keep it from the others; the last is raised."""
        cdef epoll_event[INTERRUPTS_AT_ONCE] events
        cdef QueuePair qp
        cdef int i, n
        cdef object failure = None
        if self.epoll_fd < 0:
            return
        n = epoll_wait(self.epoll_fd, events, INTERRUPTS_AT_ONCE, 0)
        for i in range(n):
            # A callback for one may have removed another, or given its slot to a third, which
            # then has a spurious interrupt.
            if events[i].data.u64 >= <uint64_t>len(self.members):
                continue
            qp = <QueuePair>self.members[events[i].data.u64]
            if qp is None:
                continue
            try:
                interrupted(qp, 1)
            except BaseException as error:
                failure = error
        if failure is not None:
            raise failure

    # -- early polls

    def guard(self, QueuePair qp):
        """Early polls of the queue pair begin (anew). Returns the seconds until the first."""
        if not qp.early_ns:
            self.guarded.append(qp)
        qp.early_at = 0
        qp.early_ns = nvq_now_ns() + self.delays[0]
        return self.delays[0] * 1e-9

    def forget(self, QueuePair qp):
        """No more early polls of the queue pair; it is closed, frozen, or leaves the loop."""
        if qp.early_ns:
            qp.early_ns = 0
            self.guarded.remove(qp)
        if self.last is qp:
            self.last = None

    def poll_early(self):
        """Polls all queue pairs whose early poll is due soon. Returns (seconds until the next, or
        None; [(queue pair, whether it has missed an interrupt, else: it has been without
        completions for the longest delay)], for those of which one is true)."""
        cdef QueuePair qp
        cdef uint64_t now, soon, missed, next_ns = 0
        cdef unsigned last = self.n_delays - 1
        cdef int found
        cdef list notable = []
        if self.epoll_fd >= 0:
            self.take()      # what has come is not missed
        now = nvq_now_ns()
        # Together with those that are due a little later: one timer for all.
        soon = now + self.delays[0] // 2
        for item in list(self.guarded):
            qp = <QueuePair>item
            if not qp.early_ns:
                continue         # a callback of another has ended it
            if qp.early_ns <= soon:
                if qp.frozen.copy != NULL:
                    found = -1       # thaw() begins anew
                else:
                    missed = qp.q.header.n_missed if qp.has_memory else 0
                    found = poll_early(qp, qp.early_at == last)
                if found < 0:
                    self.end_guard(qp)
                    continue
                if found and qp.has_memory and qp.q.header.n_missed != missed:
                    notable.append((qp, True))
                elif not found and qp.early_at == last:
                    notable.append((qp, False))
                qp.early_at = 0 if found else min(qp.early_at + 1, last)
                qp.early_ns = now + self.delays[qp.early_at]
            if not next_ns or qp.early_ns < next_ns:
                next_ns = qp.early_ns
        return (next_ns - now) * 1e-9 if next_ns else None, notable

    cdef void end_guard(self, QueuePair qp) except *:
        if qp.early_ns:
            qp.early_ns = 0
            self.guarded.remove(qp)


cdef inline bint others_wait(QueuePair qp) noexcept:
    """A command was sent. Has the queue pair of the same loop that sent one before, if it is
    another, commands in flight? Then the loop has other things to do than to spin for one.
    """
    cdef SharedWaits shared = qp.shared
    cdef QueuePair before
    if shared is None or shared.last is qp:
        return False
    before, shared.last = shared.last, qp
    return before is not None and before.q.n_armed > 0
