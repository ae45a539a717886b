# Delivery of reaped completions to their waiters.

cdef void deliver(QueuePair qp) except *:
    """Delivers all reaped completions to their waiters, even if one of them raises.

    It may be called again from inside (by a callback that polls): then the inner call delivers the
    rest."""
    cdef object failure = None
    cdef Py_ssize_t n
    while qp.n_delivered < qp.q.n_done:
        try:
            while qp.n_delivered < qp.q.n_done:
                qp.n_delivered += 1
                deliver_one(qp, qp.q.done_slots[qp.n_delivered - 1])
        except BaseException as error:
            failure = error if failure is None or not isinstance(error, Exception) else failure
    n = qp.q.n_done
    qp.n_delivered = qp.q.n_done = 0
    try:
        if qp.starved:
            feed(qp, n)
        if qp.line:
            qp.grant()
        if qp.batches:
            # Also those without a reaped completion: they may have had no command id at all.
            go_on_with_batches(qp)
        if qp.streams:
            go_on_with_streams(qp)
        if qp.leaving is not None:
            see_off(qp)
        if qp.q.n_armed == 0 and qp.on_idle is not None:
            callback, qp.on_idle = qp.on_idle, None
            callback()
    except BaseException as error:
        failure = error if failure is None or not isinstance(error, Exception) else failure
    if failure is not None:
        report(qp, failure)


cdef inline int deliver_one(QueuePair qp, unsigned slot) except -1:
    cdef Request request
    cdef nvq_tracker *tracker
    cdef PyObject *waiter
    if qp.slots[slot].batch != NULL:
        nvb_finish(&qp.q, qp.slots, slot)
        return 0
    tracker = &qp.q.trackers[slot]
    waiter = qp.waiters[slot]
    qp.waiters[slot] = NULL
    if waiter == NULL:
        nvq_retire(&qp.q, slot)
        return 0
    request = <Request>waiter
    Py_DECREF(request)       # the queue pair's reference; `request` is another
    request.status = tracker.status
    request.dw0 = tracker.dw0
    request.dw1 = tracker.dw1
    if request.state == SENT and not request.failed:
        if request.status == 0 and request.bounced and not request.raw and request.kind != WRITE_FROM:
            request.status = nvs_finish(<uint8_t *>request.piece.data, request.nbytes)
        if request.geometry is not None and request.geometry.state == EXPIRED:
            # Sized for another format, or meant for another namespace: its effect or data is not
            # what was requested.
            request.failed = True
            request.result = request.geometry.error
        elif request.status == 0:
            take_result(qp, request)
        elif delay(qp, request):
            nvq_put(&qp.q, slot)
            return 0
        request.let_go()
        request.state = COMPLETED
        qp.waiting.due += 1
        nvq_put(&qp.q, slot)
        request.wake()
    else:
        request.let_go()
        request.state = FINISHED
        nvq_put(&qp.q, slot)
    return 0


cdef void report(QueuePair qp, failure) except *:
    """An exception from a callback: the loop reports it, not the awaiter in whose step the
    completion was found.
    """
    if qp.loop is None or not isinstance(failure, Exception):
        raise failure
    qp.loop.call_exception_handler({"message": f"queue pair {qp.qid}: exception while completions were delivered",
                                    "exception": failure})


cdef inline void take_result(QueuePair qp, Request request) except *:
    try:
        if request.kind == READ_BYTES and request.bytes is not None:
            request.result = request.bytes
        elif request.kind == READ_BYTES:
            request.result = PyBytes_FromStringAndSize(request.piece.data, request.nbytes)
        elif request.kind == READ_INTO:
            if request.bounced:
                memcpy(request.view.buf, request.piece.data, request.nbytes)
            request.result = request.nbytes
        if request.raw:
            request.result = (request.dw0, request.dw1, request.result)
    except MemoryError as error:
        # Only for this command: others that were reaped with it get their results.
        request.failed = True
        request.result = error
