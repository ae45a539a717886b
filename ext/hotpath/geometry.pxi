# Whether a request still matches the format of its namespace at the time it was made.

cdef enum:
    SOUND      # requests made for it may be sent
    HELD       # they wait: a command that may change the namespace is in flight
    EXPIRED    # they end with `error`: the namespace has another format, or was replaced


@cython.final
cdef class Geometry:
    """The format that a namespace's requests were sized for. A namespace has one at a time and
    never reuses an old one.

    Changed on the controller's home thread only. Other threads notice it at their next command;
    QueuePair.go_on() on each of them is the barrier after which all have noticed it.
    """

    cdef int state
    cdef object error

    def hold(self):
        """Requests that were not sent wait from now on, until release() or expire() and go_on()
        of their queue pair.
        """
        if self.state == SOUND:
            self.state = HELD

    def release(self):
        """Nothing has changed: requests continue."""
        if self.state == HELD:
            self.state = SOUND

    def expire(self, exception):
        """Unsent and in-flight requests end with `exception`. Final."""
        if self.state != EXPIRED:
            self.state = EXPIRED
            self.error = exception

    @property
    def held(self):
        return self.state == HELD

    @property
    def expired(self):
        return self.state == EXPIRED

    def check(self):
        """Raises the exception of this format's requests, if they can't be sent any more."""
        if self.state == EXPIRED:
            raise self.error.with_traceback(None)


cdef int park(QueuePair qp, Request request) except -1:
    """The request's namespace is held, or has changed: it waits unsent, or ends."""
    try:
        if qp.refusal is not None:
            raise qp.refusal
        request.geometry.check()
        qp.check_thread()
    except BaseException:
        request.state = FINISHED
        request.let_go()
        raise
    request.state = PARKED
    request.future = qp.create_future()
    qp.parked.append(request.future)
    qp.ring_now()
    return 0


cdef int defuse(QueuePair qp) except -1:
    """After a reset, before the resent commands are rung: those whose geometry has expired
    meanwhile become Flush commands in their place in the ring, and their awaiters get the
    geometry's error when these complete.
    """
    cdef uint32_t i
    cdef Batch batch
    cdef bint expired
    for i in range(qp.q.n_trackers):
        if qp.q.trackers[i].state != NVQ_ARMED:
            continue
        expired = False
        if qp.waiters[i] != NULL:
            geometry = (<Request>qp.waiters[i]).geometry
            expired = geometry is not None and (<Geometry>geometry).state == EXPIRED
        elif qp.slots[i].batch != NULL:
            geometry = geometry_of_stream(qp, qp.slots[i].batch)
            expired = geometry is not None and (<Geometry>geometry).state == EXPIRED
            for batch in qp.batches:
                if qp.slots[i].batch == &batch.b:
                    expired = batch.geometry is not None and batch.geometry.state == EXPIRED
        if expired:
            nvd_defuse(&qp.q, i)
    return 0


cdef int wake_parked(QueuePair qp) except -1:
    """Each checks by itself whether it may continue."""
    parked, qp.parked = qp.parked, []
    return wake_all(parked)


cdef int wake_all(futures) except -1:
    for future in futures:
        if not future.done():
            wake(future)
    return 0
