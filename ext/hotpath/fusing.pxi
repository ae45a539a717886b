# Two commands as one fused operation (Base 2.1, 3.4.2): consecutive entries of the ring that one
# doorbell write announces. Each of them has its own awaiter and completion.

def turn_for_fused(QueuePair qp):
    """Reserves a command id. None: it is reserved now; else a future that is done when it is. Two
    are needed, and only one caller at a time may collect them: two that hold one each would wait
    for each other. give_back_turn() returns it.
    """
    if qp.refusal is not None:
        raise qp.refusal
    qp.check_thread()
    qp.check_open()
    if qp.q.n_trackers - qp.q.header.n_reserved < 2:
        raise ValueError(f"queue {qp.qid} has room for one command at a time, a fused operation needs two")
    if not qp.held and <int>qp.q.n_free > qp.n_granted and not qp.line:
        qp.n_granted += 1
        return None
    return qp.stand_in_line()


def give_back_turn(QueuePair qp, future):
    """What turn_for_fused() returned isn't used."""
    qp.leave_line(future)


def send_fused(QueuePair qp, Request first, Request second):
    """Sends both, whose requests were made and not awaited, with two reserved ids, which are used
    up in any case. None: they were sent, and each can be awaited. (future, reserved): nothing was
    sent, and the future is done when it is worth another try; reserved: then give_back_turn()
    returns what it stands for.
    """
    qp.n_granted -= 2
    try:
        if qp.refusal is not None:
            raise qp.refusal
        qp.check_open()
        if first.geometry is not None and first.geometry.state:
            first.geometry.check()
            future = qp.create_future()
            qp.parked.append(future)
            qp.pass_on()
            return future, False
        if qp.held or <int>qp.q.n_free < 2:
            qp.pass_on()
            future = qp.create_future()
            future.set_result(None)
            return future, False
        for request in (first, second):
            if not place_fused(qp, <Request>request):
                # A page that the first one keeps while it waits would be the only one, and hide
                # from starve() that no page will ever come.
                if (<Request>request) is second and first.bounced:
                    unplace(qp, first)
                    feed(qp, 1)
                future = starve(qp, (<Request>request).bounce_class, False)
                qp.grant()
                return future, True
    except BaseException:
        drop_fused(first)
        drop_fused(second)
        qp.pass_on()
        raise
    qp.pairing = True
    try:
        send_placed(qp, first)
        send_placed(qp, second)
    finally:
        qp.pairing = False
    first.yields = second.yields = <uint8_t>nvw_yields(&qp.waiting)
    qp.ring_now()
    if qp.waiting.mode == NVW_POLL:
        qp.plan_poll()
    guard(qp)
    return None


cdef int place_fused(QueuePair qp, Request request) except -1:
    if request.nbytes > qp.max_transfer:
        raise ValueError(f"a transfer of {request.nbytes} bytes is over this queue's limit of {qp.max_transfer}")
    return place(qp, request)


cdef void unplace(QueuePair qp, Request request) noexcept:
    """Its bounce page goes back; the caller's buffer stays with it."""
    if request.bounced:
        give_piece(qp.bounce, request.bounce_class, request.piece)
        request.bounced = False
        request.flags &= <uint16_t>~NVQ_BOUNCE


cdef void drop_fused(Request request) noexcept:
    request.state = FINISHED
    request.let_go()
