# Commands that the controller could not complete now, and asks to be sent again after a delay
# (Base 2.1, 3.3.3.2.1: Command Retry Delay; 5.1.25.1.14: ACRE).

cdef enum:
    COMMAND_RETRY_DELAY = 3 << 11
    DO_NOT_RETRY = 1 << 14
    COMMAND_INTERRUPTED = 0x21


cdef bint delay(QueuePair qp, Request request) except -1:
    """Has a failed command to be sent again later? Then it waits unsent, without a command id and
    without bounce pages, and goes through admission again. The caller frees its slot.
    """
    cdef uint16_t status = request.status
    if status & DO_NOT_RETRY or not (status & COMMAND_RETRY_DELAY or status & 0x7ff == COMMAND_INTERRUPTED):
        return False
    if qp.retry_delay is None or request.observer is not None or request.sqe.flags & FUSED:
        return False
    seconds = qp.retry_delay(status, request.sqe.opcode, qp.qid == 0, request.attempts)
    if seconds is None:
        return False
    future = request.future if request.future is not None else qp.create_future()
    qp.call_later(seconds, delay_over, qp, future)
    if request.bounced:
        give_piece(qp.bounce, request.bounce_class, request.piece)
        request.bounced = False
        request.flags &= ~NVQ_BOUNCE
    if not request.has_view:      # else it holds the caller's scattered buffers
        request.bytes = None
    request.attempts += 1
    request.state = PARKED
    request.future = future
    request.yields = 0
    request.timed_out = False
    qp.delayed.append(future)
    qp.n_delays += 1
    return True


def delay_over(QueuePair qp, future):
    """The time is over, or there is no reason to wait for it any more."""
    if future in qp.delayed:
        qp.delayed.remove(future)
    if not future.done():
        wake(future)


cdef int end_waits(QueuePair qp) except -1:
    """New commands are refused: neither a release nor the end of a delay helps."""
    wake_parked(qp)
    delayed, qp.delayed = qp.delayed, []
    return wake_all(delayed)
