# How the answer to a command is waited for: what waiting.h decides is done here.

cdef extern from "hotpath/ringing.h" nogil:
    ctypedef struct nvw_ringing "struct nvw_ringing":
        uint32_t at, least, most, waited

    void nvw_ringing_init(nvw_ringing *r, uint32_t least, uint32_t most)
    void nvw_waited(nvw_ringing *r, uint64_t ns)
    void nvw_ringing_learn(nvw_ringing *r, uint32_t posted, bint idle)

cdef extern from "hotpath/napping.h" nogil:
    ctypedef struct nvw_nap "struct nvw_nap":
        uint64_t mean_ns, dev_ns, wake_ns, posted_ns, at, due_ns
        bint probe
        uint64_t taken

    void nvw_nap_learn(nvw_nap *nap, uint64_t ns, bint slept)
    void nvw_nap_woken(nvw_nap *nap, uint64_t late_ns)
    uint64_t nvw_nap_over(const nvw_nap *nap, uint64_t now_ns)
    uint64_t nvw_nap_due(nvw_nap *nap, uint64_t now_ns, bint probes_only)

cdef extern from "hotpath/waiting.h" nogil:
    enum: NVW_POLL, NVW_INTERRUPT, NVW_ADAPTIVE, NVW_HYBRID, NVW_EAGER_IN_A_ROW, NVW_DISTRUST

    ctypedef struct nvw_budget "struct nvw_budget":
        uint64_t limit_ns, gap_ns

    ctypedef struct nvw_waiting "struct nvw_waiting":
        int mode
        uint64_t spin_ns
        bint spin_learnt
        uint32_t reap_limit, ack_limit, due
        bint burst_over
        nvw_ringing ringing
        uint32_t eager
        uint64_t pumped_ns
        int yield_score
        nvw_budget lone, next, batch
        nvw_nap nap
        bint flush_planned, poll_planned, guarded, patient, suspicious
        uint64_t guarded_reaped
        uint32_t distrust
        uint64_t polled_until, asleep_ns, asleep_at

    uint64_t nvw_budget_ns(nvw_budget *budget)
    void nvw_budget_learn(nvw_budget *budget, uint64_t ns)
    void nvw_init(nvw_waiting *w, uint32_t entries)
    uint64_t nvw_spin_limit(const nvw_waiting *w)
    bint nvw_is_slow(const nvw_waiting *w)
    void nvw_is_out(nvw_waiting *w, uint64_t at, uint64_t posted_ns)
    bint nvw_eager(nvw_waiting *w, uint64_t spun_ns)
    unsigned nvw_yields(nvw_waiting *w)
    bint nvw_polls(nvw_waiting *w, uint32_t out)
    void nvw_yielded_in_vain(nvw_waiting *w)
    void nvw_came(nvw_waiting *w, bint yielding)
    bint nvw_poll_first(nvw_waiting *w, uint64_t now_ns)
    void nvw_missed(nvw_waiting *w)
    void nvw_interrupted(nvw_waiting *w)
    void nvw_falls_asleep(nvw_waiting *w, uint64_t at, uint64_t now_ns)
    void nvw_slept(nvw_waiting *w, uint64_t ns)

MODES = {"poll": NVW_POLL, "interrupt": NVW_INTERRUPT, "adaptive": NVW_ADAPTIVE, "hybrid": NVW_HYBRID}
MODE_NAMES = {mode: name for name, mode in MODES.items()}


cdef bint after_post(QueuePair qp, Request request) except -1:
    """Right after a command was posted: rings now or plans to, completes at once what the
    controller has answered already, and decides how the command is waited for. `request.yields`
    iterations without a Future come first where recent commands were that fast.
    """
    cdef nvw_waiting *w = &qp.waiting
    cdef bint alone = qp.q.n_armed == 1 and w.due == 0
    cdef uint64_t spun = 0
    cdef bint last = alone or w.burst_over      # nothing else has something to send in this iteration, as far as can be known
    if alone:
        w.burst_over = False
        qp.ring_now()
    elif last or qp.q.n_unrung >= w.ringing.at:
        w.burst_over = False
        ring_several(qp)
    elif not w.flush_planned and w.mode == NVW_INTERRUPT:
        qp.plan_flush()
    if w.mode == NVW_INTERRUPT:
        return False
    if last and w.spin_ns and w.eager and (qp.ready is None or not (qp.ready or qp.turns_left)) and not others_wait(qp):
        if alone:
            if not nvw_is_slow(w):
                spun = spin(qp, &w.lone)
        elif not w.yield_score:
            spun = spin(qp, &w.next)
            nvw_waited(&w.ringing, spun)
    if nvq_pending_for(&qp.q, last):
        qp.reap_and_deliver(w.reap_limit)
        if w.guarded and qp.q.n_unacked and not w.flush_planned:
            qp.plan_flush()         # others sleep, and nothing may stay unacknowledged meanwhile
        if request.state == COMPLETED:
            if nvw_eager(w, spun):
                return True
            # Other tasks of the loop have waited long enough: one iteration, and then the result.
            request.state = SENT
            request.answered = True
            request.yields = 1
            return False
    if w.mode == NVW_POLL:
        qp.plan_poll()
    elif alone:
        nvw_is_out(w, qp.q.header.submitted, sleep_clock(qp) - spun)
    request.yields = <uint8_t>nvw_yields(w)      # 0: before_sleep() is next
    return False


cdef bint after_yield(QueuePair qp, Request request) except -1:
    """The loop has come round to a command that waits without a Future."""
    if request.answered:
        request.state = COMPLETED
        return True
    qp.ring_late()
    if pending_in_turn(qp):
        qp.reap_and_deliver(qp.waiting.reap_limit)
    else:
        qp.waiting.ringing.waited += 1
    if request.state == COMPLETED:
        return True
    if request.yields == 0:
        nvw_yielded_in_vain(&qp.waiting)
    return False


cdef inline bint pending_in_turn(QueuePair qp) noexcept:
    """Is there a completion for one of several waiters? Those of a transport may share polls."""
    if nvq_is_here(&qp.q):
        return True
    return qp.q.transport != NULL and nvq_pending_for(&qp.q, nvw_polls(&qp.waiting, qp.q.n_armed))


cdef inline void ring_several(QueuePair qp) except *:
    """Rings for all posted commands, and learns when it is best done the next time."""
    if qp.q.n_unrung and qp.q.transport == NULL:
        nvw_ringing_learn(&qp.waiting.ringing, qp.q.n_unrung, nvq_is_idle(&qp.q))
    qp.ring_now()


cdef inline void take(QueuePair qp, Request request) noexcept:
    """An awaiter has come for its result. The last of those that are due, which is the last to
    send something in this iteration as far as can be known, rings for all of them: once an
    iteration, and no iteration later.
    """
    nvw_came(&qp.waiting, request.yields)


cdef uint64_t spin(QueuePair qp, nvw_budget *budget) noexcept:
    """Polls for a completion within a budget, and within the limit of spins; the nanoseconds that
    it took.
    """
    cdef uint64_t begin, now, bound
    cdef int turns
    budget.limit_ns = nvw_spin_limit(&qp.waiting)
    bound = nvw_budget_ns(budget)
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
    # Measured to within the 16 polls between two readings of the clock.
    nvw_budget_learn(budget, now - begin if nvq_pending(&qp.q) else 2 * budget.limit_ns)
    return now - begin
