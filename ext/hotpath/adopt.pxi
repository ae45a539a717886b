# Continuing with a predecessor's queue pair, and handing one over. See adopt.h for what a killed
# process's memory shows.

cdef enum:
    OPC_ASYNC_EVENT_REQUEST = 0x0c


class QueueStateError(ValueError):
    """Memory that should hold a queue pair is invalid; it was not changed."""


cdef class AdoptedCommand(Observer):
    """A predecessor's command, from its tracker, and its result. nvme_async.keepalive has its
    public class.
    """

    cdef readonly uint16_t qid
    cdef readonly uint16_t cid
    cdef readonly uint64_t tag
    cdef readonly uint64_t nbytes       # of its data
    cdef readonly object data_offset    # of its data in the pool, or None
    cdef readonly bytes sqe
    cdef readonly bint sent             # False: the predecessor ended before it reached the ring
    cdef readonly bint orphan           # it had no waiter any more
    cdef readonly object status         # the CQE's 15-bit status field; None while it is in flight, and permanently if it never completed
    cdef readonly uint32_t dw0, dw1
    cdef readonly object data           # data of a successful command, or None
    cdef readonly object error          # exception, when it didn't succeed
    cdef readonly bint finished         # it has ended
    cdef object on_finished             # called with this object, once
    cdef Request request                # until it is answered

    cdef bint over(self) noexcept:
        return self.finished

    cdef int answered(self, Request request) except -1:
        self.request = None
        take(request.qp, request)
        if request.failed:
            self.error, request.result = request.result, None
        else:
            self.status, self.dw0, self.dw1 = request.status, request.dw0, request.dw1
            if request.status:
                self.error = request.qp.command_error(request.status, request.dw0, self.sqe, self.qid == 0, request.timed_out)
            else:
                self.data = request.result[2] if request.kind == READ_BYTES else None
            request.result = None
        self.finish()
        return 0

    def lose(self, error):
        """No completion will arrive for it any more."""
        self.error = error
        self.finish()

    cdef void finish(self) except *:
        self.finished = True
        callback, self.on_finished = self.on_finished, None
        if callback is not None:
            callback(self)


cdef raise_state(char *error):
    raise QueueStateError((<bytes>error).decode(errors="replace"))


def check_queue(memory, uint16_t qid):
    """The fixed facts of the queue pair that a predecessor made in `memory`, as keyword
    arguments for QueuePair(attach=True).

    QueueStateError if there is none, or not this one. Changes nothing.
    """
    cdef Py_buffer view
    cdef char error[NVQ_ERROR_BYTES]
    cdef nvq_header *header
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
    try:
        header = <nvq_header *>view.buf
        if nvq_check_header(header, view.len, qid, error):
            raise_state(error)
        return {"qid": qid, "entries": header.entries, "n_trackers": header.n_trackers, "n_reserved": header.n_reserved,
                "vector": header.vector, "interrupts": bool(header.interrupts)}
    finally:
        PyBuffer_Release(&view)


cdef int inspect_queue(QueuePair qp, bint sums, bint known, nvq_measure *measure, nvq_found *found) except -1:
    """Verifies and counts what a predecessor left; QueueStateError if it is damaged. Changes
    nothing. sums: see `verify_queue()`. known: the result of `verify_queue()` is not searched
    again, because the predecessor is frozen.
    """
    cdef char error[NVQ_ERROR_BYTES]
    cdef int failed
    qp.check_open()
    measure.pool_iova = qp.memory.pool.iova
    measure.pool_nbytes = qp.memory.pool.nbytes
    measure.max_transfer = qp.max_transfer
    measure.sums = sums and qp.q.header.sums == NVQ_SUMS
    if known and qp.seen != NULL:
        found[0] = qp.seen[0]
        return 0
    if nvq_check_header(qp.q.header, qp.memory_view.len, qp.qid, error):
        raise_state(error)
    measure.scratch = <uint64_t *>malloc(qp.q.list_bytes)
    if measure.scratch == NULL:
        raise MemoryError()
    failed = nvq_inspect(&qp.q, measure, found, error)
    free(measure.scratch)
    measure.scratch = NULL
    if failed:
        raise_state(error)
    return 0


def verify_queue(QueuePair qp, *, bint sums=True):
    """The predecessor's state of a queue pair made with attach=True: its commands, and the
    places of their data.

    sums: the trackers' checksums are valid; False if a release without checksums wrote them,
        possibly after one with.

    Of the dictionary's entries, "bounce" has {pool offset: size class} of the bounce pages that
    belong to commands, "inside" [(pool offset, bytes)] of other data in the pool, and "outside"
    [(device address, bytes)] of data in the predecessor's own memory. "arrived" has [(head, phase,
    command id, status field)] of the completions that were not reaped, "waiting" says whether one
    is next. QueueStateError if it is damaged. Changes nothing, so that a restore can still be
    refused.
    """
    cdef nvq_found found
    cdef nvq_measure measure
    cdef uint32_t i
    cdef uint64_t position
    cdef nvq_tracker *t
    cdef nvq_cqe cqe
    inspect_queue(qp, sums, False, &measure, &found)
    if qp.seen == NULL:
        qp.seen = <nvq_found *>malloc(sizeof(nvq_found))
        if qp.seen == NULL:
            raise MemoryError()
    qp.seen[0] = found
    arrived = []
    position = qp.q.header.reaped + found.skip_cqe
    for i in range(found.in_flight):
        if not nvq_completion_at(&qp.q, position + i, &cqe):
            break
        arrived.append(((position + i) % qp.q.entries, cqe.status & 1, cqe.cid, cqe.status >> 1))
    bounce = {}
    inside = []
    outside = []
    for i in range(qp.q.n_trackers):
        t = &qp.q.trackers[i]
        if t.state == NVQ_FREE or not nvq_has_data(t):
            continue
        if t.sqe.flags & NVQ_PSDT:
            find_places(&qp.q, i, &measure, inside, outside)
        elif t.data_offset == NVQ_NO_OFFSET:
            outside.append((t.sqe.prp1, t.data_nbytes))
        elif not t.flags & NVQ_BOUNCE:
            inside.append((t.data_offset, t.data_nbytes))
        elif t.data_offset in bounce:
            raise QueueStateError(f"command {t.cid:#x} and another own the same bounce page")
        else:
            bounce[t.data_offset] = size_class(t.data_nbytes)
    return {"in_flight": found.in_flight, "done": found.done, "unsent": found.unsent, "unrung": bool(found.unrung),
            "uncertain": bool(found.uncertain), "bounce": bounce, "inside": inside, "outside": outside, "arrived": arrived,
            "waiting": bool(nvq_completion_at(&qp.q, qp.q.header.reaped, &cqe))}


def adopt(QueuePair qp, factory, on_finished, settle, *, bint sums=True):
    """Continues with a queue pair that `verify_queue()` found valid, with its bounce pages and
    doorbells in place. The queue is held afterwards.

    factory      a subclass of AdoptedCommand
    on_finished  called with each command that was with the controller, and had not completed when
                 this returned, when it completes, or no longer can
    settle       64 bytes: a harmless command, sent if it is unknown whether the last doorbell was
                 rung
    sums         as for `verify_queue()`; afterwards the trackers have valid ones

    Returns (commands, the driver's own commands, asynchronous event requests). A command whose
    result the predecessor had recorded, or that it never sent, is finished already. The event
    requests are awaitable. Then polls the completion ring: those that have completed are finished,
    too.
    """
    cdef nvq_found found
    cdef nvq_measure measure
    cdef uint32_t i
    cdef uint64_t submitted
    cdef uint32_t state
    cdef nvq_tracker *t
    cdef Request request
    cdef AdoptedCommand command
    cdef char *pool = <char *>qp.memory_view.buf - <uint64_t>qp.memory.offset
    inspect_queue(qp, sums, True, &measure, &found)
    free(qp.seen)
    qp.seen = NULL
    qp.held = True
    submitted = qp.q.header.submitted
    commands = []
    own = []
    events = []
    # Everything that can fail for lack of memory comes before the first change.
    for i in range(qp.q.n_trackers):
        t = &qp.q.trackers[i]
        state = t.state
        if state == NVQ_FREE:
            continue
        request = adopted_request(qp, i, pool)
        if t.flags & NVQ_INTERNAL:
            if qp.qid == 0 and t.sqe.opcode == OPC_ASYNC_EVENT_REQUEST and (state == NVQ_DONE or t.position < submitted):
                events.append(request)
            continue
        command = described(factory, qp.qid, t, submitted)
        command.request = request
        request.observer = command
        (own if t.flags & NVQ_DRIVER else commands).append((t.position, command))
    commands.sort(key=_position_of)
    commands = [command for _, command in commands]
    own = [command for _, command in own]
    nvq_adopt(&qp.q, &measure, &found)
    for command in commands + own:
        request = command.request
        t = &qp.q.trackers[request.slot]
        if not command.sent:
            request.let_go()
            request.state = FINISHED
            command.request = None
            request.observer = None
            command.finish()
        elif t.state == NVQ_DONE:
            complete_recorded(qp, request, t)
        else:
            Py_INCREF(request)
            qp.waiters[request.slot] = <PyObject *>request
    for request in events:
        t = &qp.q.trackers[request.slot]
        if t.state == NVQ_DONE:
            complete_recorded(qp, request, t)
        else:
            Py_INCREF(request)
            qp.waiters[request.slot] = <PyObject *>request
    # Recorded results without a receiver: of the driver's own commands.
    for i in range(qp.q.n_trackers):
        if qp.q.trackers[i].state == NVQ_DONE:
            nvq_retire(&qp.q, i)
    ring_adopted(qp, &found, settle)
    qp.reap_and_deliver(qp.q.n_trackers)
    if qp.q.n_armed:
        for command in commands + own:
            if not command.finished:
                command.on_finished = on_finished
        guard(qp)
    return commands, own, events


def leftovers(memory, uint16_t qid, factory):
    """The commands that a predecessor's queue pair in `memory` has as outstanding, for a
    controller that won't be taken over. Changes nothing.

    QueueStateError if there is no such queue pair.
    """
    cdef Py_buffer view
    cdef nvq q
    cdef nvq_tracker *t
    cdef uint32_t i
    facts = check_queue(memory, qid)
    found = []
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
    try:
        if nvq_open(&q, <uint8_t *>view.buf, 0):
            raise MemoryError()
        for i in range(facts["n_trackers"]):
            t = &q.trackers[i]
            if t.state == NVQ_ARMED and not t.flags & (NVQ_INTERNAL | NVQ_DRIVER):
                found.append((t.position, described(factory, qid, t, q.header.submitted)))
        nvq_close(&q)
    finally:
        PyBuffer_Release(&view)
    found.sort(key=_position_of)
    return [command for _, command in found]


cdef AdoptedCommand described(factory, uint16_t qid, nvq_tracker *t, uint64_t submitted):
    """A tracker's command."""
    cdef AdoptedCommand command = factory.__new__(factory)
    command.qid = qid
    command.cid = t.cid
    command.tag = t.tag
    command.nbytes = t.data_nbytes
    command.data_offset = None if t.data_offset == NVQ_NO_OFFSET else t.data_offset
    command.sqe = PyBytes_FromStringAndSize(<char *>&t.sqe, 64)
    command.sent = t.state == NVQ_DONE or t.position < submitted
    command.orphan = bool(t.flags & NVQ_ORPHAN)
    return command


def _position_of(pair):
    return pair[0]


cdef Request adopted_request(QueuePair qp, uint32_t slot, char *pool):
    """A Request as if this process had sent it."""
    cdef nvq_tracker *t = &qp.q.trackers[slot]
    cdef Request request = Request.__new__(Request)
    request.qp = qp
    request.sqe = t.sqe
    request.slot = slot
    request.state = SENT
    request.raw = True
    request.tag = t.tag
    request.flags = t.flags | NVQ_ADOPTED
    request.nbytes = t.data_nbytes
    request.iova = t.sqe.prp1
    request.offset = t.data_offset
    if t.data_nbytes and t.data_offset == NVQ_NO_OFFSET:
        # The predecessor's own memory: this process has no view of it, and its content is
        # uncertain.
        request.attempts = NEVER_AGAIN
    elif t.data_nbytes:
        request.kind = READ_BYTES if t.flags & NVQ_TO_HOST else WRITE_FROM
        request.piece = Piece(pool + t.data_offset, t.sqe.prp1, t.data_offset)
        request.bounced = bool(t.flags & NVQ_BOUNCE)
        request.bounce_class = size_class(t.data_nbytes)
    return request


cdef int complete_recorded(QueuePair qp, Request request, nvq_tracker *t) except -1:
    """The predecessor reaped this completion, but did not deliver it."""
    request.status, request.dw0, request.dw1 = t.status, t.dw0, t.dw1
    if request.status == 0:
        take_result(qp, request)
    request.let_go()
    request.state = COMPLETED
    nvq_retire(&qp.q, request.slot)
    request.wake()
    return 0


cdef int ring_adopted(QueuePair qp, nvq_found *found, settle) except -1:
    """Doorbells that were due, or may have been due, in the predecessor."""
    cdef int slot
    cdef nvq_tracker *t
    cdef const unsigned char[::1] raw
    if found.uncertain:
        slot = nvq_take_reserved(&qp.q)
        if slot >= 0 and settle is not None:
            raw = settle
            t = &qp.q.trackers[slot]
            memcpy(&t.sqe, &raw[0], 64)
            t.flags = NVQ_INTERNAL
            t.tag = 0
            t.data_offset = NVQ_NO_OFFSET
            t.data_nbytes = 0
            nvq_post(&qp.q, slot)
    if found.uncertain or found.unrung:
        if nvq_ring_sq_surely(&qp.q):
            qp.write_sq()
    if nvq_cq_must_ring(&qp.q):
        if nvq_ring_cq_surely(&qp.q):
            qp.write_cq()
    return 0


def rebind(QueuePair qp, create_future, call_soon, ready):
    """Another loop uses this queue pair from now on (arguments as for QueuePair). The old one
    has nothing waiting, and nothing in flight but a command that settles a doorbell (`adopt()`).
    """
    if not qp.movable or qp.line or qp.starved:
        raise RuntimeError(f"queue {qp.qid} is in use")
    leave_turns(qp)
    qp.create_future, qp.call_soon, qp.ready = create_future, call_soon, ready
    qp.waiting.flush_planned = qp.waiting.poll_planned = False
    qp.watched = qp.waiting.guarded = False


# -- handing on

def freeze(QueuePair qp):
    """Holds new commands, delivers available results, rings for all posted commands; from then
    on this process doesn't touch the queue pair's memory or doorbells, until thaw().
    """
    qp.check_open()
    if qp.frozen.copy != NULL:
        return
    qp.held = True
    qp.ring_now()
    while qp.reap_and_deliver(qp.waiting.reap_limit):
        pass
    qp.acknowledge()
    qp.ring_now()
    if nvq_freeze(&qp.q, &qp.frozen):
        raise MemoryError()


cdef bint between_commands(QueuePair qp):
    """With the GIL, in any thread: is the queue pair's own thread in none of the places where it
    has checked `held` but not posted yet, or has reaped but not delivered? Its functions let
    other threads run only where Python code is called or the GIL is released: for a bounce page
    (refilling), between the halves of a fused operation, in delivery (n_done), in the pumps of
    batches and streams. A command id that is taken and not posted shows in the counts.
    """
    return (FT_GLOBAL_LOCK and qp.q.transport == NULL and qp.q.sq_doorbell != NULL and qp.q.cq_doorbell != NULL
            and qp.q.n_done == 0 and qp.n_delivered == 0 and not qp.pairing and not qp.bounce.refilling
            and not qp.batches and not qp.streams and not qp.starved
            and qp.q.n_free + qp.q.n_armed == nvq_usable(&qp.q))


cdef bint at_rest(QueuePair qp):
    """between_commands(), and nothing is in flight or waited for."""
    cdef uint32_t i
    if not between_commands(qp) or qp.q.n_armed or qp.q.n_unrung or qp.line or qp.parked or qp.delayed:
        return False
    for i in range(qp.q.n_trackers):
        if qp.q.trackers[i].state != NVQ_FREE or qp.waiters[i] != NULL:
            return False
    return True


def freeze_remotely(QueuePair qp):
    """freeze() from another thread, with the GIL, without a visit to the loop: touches nothing of
    the loop. Posted commands are rung; completions that are there are left to the successor, as
    their waiters belong to the loop. Returns False, with nothing changed, if the queue pair's own
    thread may be in the middle of something.
    """
    qp.check_open()
    if qp.frozen.copy != NULL:
        return True
    if not between_commands(qp):
        return False
    qp.held = True
    qp.ring_now()
    qp.acknowledge()
    if nvq_freeze(&qp.q, &qp.frozen):
        raise MemoryError()
    return True


def is_at_rest(QueuePair qp):
    """May hand_over() be called from another thread? Frozen, and without waiters."""
    return qp.has_memory and qp.frozen.copy != NULL and at_rest(qp)


def thaw(QueuePair qp):
    """No successor took it: continues where freeze() stopped. The caller must still end the
    hold.
    """
    if qp.frozen.copy != NULL:
        nvq_thaw(&qp.q, &qp.frozen)
        qp.reap_and_deliver(qp.waiting.reap_limit)


def hand_over(QueuePair qp, sent, unsent):
    """A successor has the queue pair: waiters for in-flight commands get the exception `sent`,
    waiters to send one get `unsent`, and this object is closed. Memory, tracker and slots stay
    as they are, for the successor.

    Returns requests whose memory the controller may still access and no successor knows of: keep
    them until the process ends.
    """
    cdef uint32_t i
    cdef Request request
    lent = []
    if not qp.has_memory:
        return lent
    qp.refuse(unsent)
    qp.on_idle = qp.on_busy = qp.on_sleep = None
    for i in range(qp.q.n_trackers):
        if qp.waiters[i] == NULL:
            continue
        request = <Request>qp.waiters[i]
        qp.waiters[i] = NULL
        if request.has_view and not request.bounced and request.offset == NVQ_NO_OFFSET:
            lent.append(request)
        if request.state == SENT and not request.failed:
            request.fail(sent)
            request.state = COMPLETED
        else:
            request.state = FINISHED
        if request.has_view and (request.bounced or request.offset != NVQ_NO_OFFSET):
            PyBuffer_Release(&request.view)
            request.has_view = False
        request.bounced = False
        Py_DECREF(request)
    free(qp.frozen.copy)
    memset(&qp.frozen, 0, sizeof(qp.frozen))
    qp.q.n_armed = qp.q.n_done = 0
    qp.close()
    return lent
