# Commands that don't complete: waiters get exceptions, and after a reset of the controller commands
# are resent, or all their memory is released. Called by the methods of QueuePair of these names.

DEF ABORT_REQUESTED = 0x07
# The attempts of an adopted command whose data is elsewhere than in the pool: the place is known
# from its PRP list or SGL alone, which a reset clears.
DEF NEVER_AGAIN = 0xffffffff


cdef int fail_queue(QueuePair qp, exception) except -1:
    cdef uint32_t i
    cdef Request request
    cdef Batch batch
    for batch in list(qp.batches):
        if not batch.b.stopped:
            batch.fail(exception)
    fail_streams(qp, exception)
    for i in range(qp.q.n_trackers):
        if qp.waiters[i] != NULL:
            request = <Request>qp.waiters[i]
            if request.state == SENT and not request.failed:
                request.fail(exception)
    return 0


cdef int restart_queue(QueuePair qp, retryable, exception, uint32_t limit) except -1:
    cdef uint32_t i
    cdef Request request
    qp.check_open()
    # The controller was reset: no successor has it, and the rings in the pool are meant.
    nvq_thaw(&qp.q, &qp.frozen)
    requests = []
    elements = []
    cdef Batch batch
    for i in range(qp.q.n_trackers):
        if qp.slots[i].batch != NULL:
            elements.append((qp.q.trackers[i].position, i))
        if qp.waiters[i] != NULL:
            requests.append((qp.q.trackers[i].position, i, <object>qp.waiters[i]))
            Py_DECREF(<object>qp.waiters[i])
            qp.waiters[i] = NULL
    # Entries from here on were never rung: the controller has not seen them since the last restart,
    # so this restart is no attempt of theirs.
    cdef uint64_t rung = qp.q.header.sq_ringing
    cdef nvb_slot *slots = qp.slots
    qp.slots = <nvb_slot *>calloc(qp.q.n_trackers, sizeof(nvb_slot))
    if qp.slots == NULL:
        qp.slots = slots
        raise MemoryError()
    qp.leave_rings()
    nvq_reset(&qp.q)
    requests.sort()
    elements.sort()
    count = 0
    for batch in qp.batches:
        batch.b.out = 0
        if batch.b.command.opcode not in retryable and not batch.b.stopped:
            batch.fail(exception)
    restart_streams(qp, retryable)
    for position, slot in elements:
        if nvb_again(&qp.q, qp.slots, &slots[<int>slot], position < rung, limit):
            count += 1
    free(slots)
    streams_restarted(qp)
    for batch in list(qp.batches):
        if batch.b.stopped:
            leave_batches(qp, batch)
    for position, _, entry in requests:
        request = <Request>entry
        # Half of a fused operation isn't sent again: the first half may have been executed together
        # with the other one.
        if (request.state == SENT and not request.failed and request.sqe.opcode in retryable
                and (position >= rung or request.attempts < limit) and request.attempts != NEVER_AGAIN
                and not request.sqe.flags & FUSED):
            request.attempts += position < rung
            request.timed_out = False
            send_placed(qp, request)
            count += 1
            continue
        if request.state == SENT and not request.failed:
            request.fail(qp.command_error(ABORT_REQUESTED, 0, PyBytes_FromStringAndSize(<char *>&request.sqe, 64), False, True)
                         if request.timed_out else exception)
        # Its slot is another's from now on: a late awaiter must find nothing to detach from.
        request.state = FINISHED
        request.let_go()
    feed(qp, len(qp.starved))
    qp.grant()
    if qp.leaving is not None:
        see_off(qp)
    return count


cdef int release_queue(QueuePair qp) except -1:
    if not qp.has_memory:
        return 0
    cdef uint32_t i
    cdef Request request
    cdef Batch batch
    nvq_thaw(&qp.q, &qp.frozen)
    for i in range(qp.q.n_trackers):
        if qp.waiters[i] != NULL:
            request = <Request>qp.waiters[i]
            qp.waiters[i] = NULL
            request.state = FINISHED      # a late awaiter must find nothing to detach from
            request.let_go()
            Py_DECREF(request)
        if qp.slots[i].batch != NULL:
            if qp.slots[i].batch.bounced:
                qp.slots[i].batch.pieces[qp.slots[i].batch.n_pieces] = qp.slots[i].piece
                qp.slots[i].batch.n_pieces += 1
            qp.slots[i].batch = NULL
    for batch in list(qp.batches):
        batch.b.out = 0
        batch.b.stopped = True
        leave_batches(qp, batch)
    release_streams(qp)
    qp.leave_rings()
    nvq_reset(&qp.q)
    qp.n_delivered = 0
    feed(qp, len(qp.starved))
    qp.grant()
    if qp.leaving is not None:
        see_off(qp)
    return 0
