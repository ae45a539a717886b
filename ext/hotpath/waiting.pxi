# How the answer to a command is waited for: at once, for a few passes of the loop, or asleep.

cdef extern from "hotpath/patience.h" nogil:
    ctypedef struct nvq_patience "struct nvq_patience":
        uint64_t limit_ns, gap_ns

    uint64_t nvq_patience_bound(nvq_patience *patience)
    void nvq_patience_learn(nvq_patience *patience, uint64_t ns)

cdef enum:
    POLL = 0         # completions are looked for on each pass of the loop
    INTERRUPT = 1    # only when the vector's eventfd says so
    ADAPTIVE = 2     # both: a bounded look at once, else the eventfd

DEF EAGER_IN_A_ROW = 32   # completions without suspending, before other tasks of the loop get their turn
DEF CREDIT_NS_BITS = 12   # what was looked for counts as one more for each 4096 ns: 131 us in a row at most, and one look
DEF MAX_YIELDS = 6        # passes of the loop that a command waits for without a Future
DEF MAX_PATIENCE = 64

MODES = {"poll": POLL, "interrupt": INTERRUPT, "adaptive": ADAPTIVE}


cdef bint look(QueuePair qp, Request request) except -1:
    """Right after a command was posted: rings now or plans to, completes at once what the controller has answered already, and decides
    how the command is waited for. `request.yields` passes of the loop without a Future come first where recent commands were that fast."""
    cdef bint alone = qp.q.n_armed == 1 and qp.n_due == 0
    cdef uint64_t looked = 0, cost
    cdef bint last = alone or qp.burst_over      # nobody else has something to send in this pass, as far as anybody can know
    if last or qp.q.n_unrung >= qp.ring_at:
        qp.burst_over = False
        qp.ring_now()
    elif not qp.flush_planned and qp.mode == INTERRUPT:
        qp.plan_flush()
    if qp.mode == INTERRUPT:
        return False
    if last and qp.spin_ns and qp.credit and (qp.ready is None or not qp.ready):
        if alone:
            looked = spin(qp, &qp.lone_patience)
        elif not qp.patience:
            looked = spin(qp, &qp.next_patience)
    if nvq_pending(&qp.q):
        qp.reap_and_deliver(qp.reap_limit)
        if qp.guarded and qp.q.n_unacked and not qp.flush_planned:
            qp.plan_flush()         # others sleep, and nothing may stay unacknowledged meanwhile
        if request.state == COMPLETED:
            if qp.credit:
                cost = 1 + (looked >> CREDIT_NS_BITS)
                qp.credit = qp.credit - <uint32_t>cost if cost < qp.credit else 0
                return True
            # Other tasks of the loop have waited long enough: once around, and then the result.
            qp.credit = EAGER_IN_A_ROW
            request.state = SENT
            request.answered = True
            request.yields = 1
            return False
    if qp.mode == POLL:
        qp.plan_poll()
    qp.asked += 1
    if qp.patience or not qp.asked & 63:
        request.yields = MAX_YIELDS
    elif not qp.flush_planned:
        qp.plan_flush()
    return False


cdef bint look_again(QueuePair qp, Request request) except -1:
    """The loop has come round to a command that waits without a Future."""
    if request.answered:
        request.state = COMPLETED
        return True
    qp.ring_late()
    if nvq_pending(&qp.q):
        qp.reap_and_deliver(qp.reap_limit)
    if request.state == COMPLETED:
        return True
    if request.yields == 0:
        # It takes longer than a few passes: the next ones sleep at once, but for a probe now and then.
        qp.patience = qp.patience - 16 if qp.patience > 16 else 0
    return False


cdef inline void take(QueuePair qp, Request request):
    """An awaiter has come for its result. The last of those that are due, who is the last to send something in this pass as far as anybody
    can know, rings for all of them: once a pass, and no pass later."""
    if request.yields and qp.patience < MAX_PATIENCE:
        qp.patience += 1       # it was worth the passes
    if qp.n_due:
        qp.n_due -= 1
        qp.burst_over = qp.n_due == 0


cdef uint64_t spin(QueuePair qp, nvq_patience *patience) noexcept:
    """A wait for a completion, bounded by what `patience` has learnt, and by spin_ns; the nanoseconds that it took."""
    cdef uint64_t begin, now, bound
    cdef int turns
    patience.limit_ns = qp.spin_ns
    bound = nvq_patience_bound(patience)
    if not bound:
        return 0
    qp.q.header.n_spins += 1
    begin = now = nvq_now_ns()
    while not nvq_pending(&qp.q):
        for turns in range(16):
            nvq_relax()
            if nvq_pending(&qp.q):
                break
        else:
            now = nvq_now_ns()
            if now - begin >= bound:
                break
    # Measured to within the 16 looks between two readings of the clock.
    nvq_patience_learn(patience, now - begin if nvq_pending(&qp.q) else 2 * qp.spin_ns)
    return now - begin
