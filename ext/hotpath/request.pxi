# One awaited command.

cdef enum:
    # The handling of the data
    NO_DATA        # no data
    READ_BYTES     # bounced, the result is a new bytes object
    READ_INTO      # to the caller's buffer
    WRITE_FROM     # from the caller's buffer

cdef enum:
    FUSED = 3      # of the SQE's flags: FUSE, either half of a fused operation

cdef enum:
    # A Request's states, in this order
    BLANK          # is being made
    NEW            # nothing was sent
    QUEUED         # waits for a free command id or a bounce page
    SENT           # the controller has it
    COMPLETED      # status and result are here
    FINISHED       # the awaiter has the result
    DETACHED       # the controller has it, and it has no waiter any more
    PARKED         # not sent: its namespace is held (geometry.pxi), or it failed and waits (delaying.pxi)


cdef void wake(future) except *:
    """Resumes the sleeper on `future`, unless its loop was closed."""
    try:
        future.set_result(None)
    except RuntimeError:
        if not future.get_loop().is_closed():
            raise


cdef class Observer:
    """The warning for a Request that was never awaited."""

    cdef bint over(self) noexcept:
        """Is it uninterested in the result?"""
        return True

    cdef int answered(self, Request request) except -1:
        """The request has completed, or failed (request.failed). Called once; what it raises
        goes to the loop's exception handler.
        """
        return 0


@cython.final
@cython.freelist(512)
cdef class Request:
    """An awaitable command: sent when first awaited, then completes without suspending if the
    controller completes it at once.

    It has a coroutine's methods (send, throw, close), so that asyncio.create_task, gather and
    wait_for take it as one and a Task drives it without a wrapper. May be awaited once. Cancelling
    detaches the awaiter; command and buffers stay until the controller has completed it.
    """

    cdef QueuePair qp
    cdef Geometry geometry   # of the namespace that it was sized for, or None
    cdef object future       # that its awaiter sleeps on
    cdef Observer observer   # instead of an awaiter; or None
    cdef object result       # or the exception, when `failed`
    cdef object bytes        # what a transport reads into, of READ_BYTES
    cdef nvq_sqe sqe
    cdef Py_buffer view      # holds the caller's buffer until the completion
    cdef bint has_view
    cdef bint bounced
    cdef bint failed
    cdef bint raw            # the result is (dw0, dw1), or with READ_BYTES (dw0, dw1, bytes)
    cdef uint8_t kind
    cdef uint8_t state
    cdef int bounce_class
    cdef Piece piece
    cdef uint64_t iova       # of the data, for the device
    cdef uint64_t offset     # of the data, in the pool; or NVQ_NO_OFFSET
    cdef uint64_t nbytes
    cdef uint64_t tag
    cdef uint16_t flags      # of the tracker
    cdef int slot
    cdef uint32_t dw0, dw1
    cdef uint16_t status
    cdef bint answered       # the result is here, and is held back for one iteration
    cdef bint timed_out      # the driver asked to abort it
    cdef uint32_t attempts   # how often it was resent after a reset, or a delay
    cdef uint8_t yields      # how many iterations it may still wait without a Future

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        cdef PyObject *result = NULL
        cdef int how = request_send(self, &result)
        cdef object it = <object>result
        Py_DECREF(it)
        if how:
            raise StopIteration(it)
        return it

    def throw(self, type_, value=None, traceback=None):
        """The awaiter goes away with this exception (asyncio cancels so). The controller may
        still write the buffers: they stay owned.
        """
        self.detach()
        if value is None:
            value = type_() if isinstance(type_, type) else type_
        raise value

    def close(self):
        self.detach()

    def __dealloc__(self):
        # A Request that the controller still has is referenced by its queue pair, so nothing of it
        # can be freed here too early.
        if self.has_view:
            PyBuffer_Release(&self.view)
        if self.state == NEW:
            never_awaited(call_name(self))

    def __repr__(self):
        names = ["blank", "new", "queued", "sent", "completed", "finished", "detached", "parked"]
        return f"<Request opcode={self.sqe.opcode:#04x} nsid={self.sqe.nsid} qid={self.qp.qid} {names[self.state]}>"

    cdef void hold(self, buffer, bint writable) except *:
        """Exports the caller's buffer to this command."""
        export_bytes(buffer, &self.view, writable)
        self.has_view = True

    cdef inline void let_go(self) noexcept:
        """The controller is done with the data: releases pages and buffer."""
        if self.bounced:
            give_piece(self.qp.bounce, self.bounce_class, self.piece)
            self.bounced = False
        self.bytes = None
        if self.has_view:
            PyBuffer_Release(&self.view)
            self.has_view = False

    cdef void detach(self) except *:
        """The awaiter goes away. From another thread than the queue pair's (garbage collection
        closes coroutines in any) it is asked of that thread's loop; once that has ended, nothing
        runs there.
        """
        if self.state == NEW:
            self.state = FINISHED
            self.let_go()
        elif self.state != FINISHED and self.state != DETACHED and self.qp.ask_owner(self.close):
            pass
        elif self.state == QUEUED:
            self.state = FINISHED
            self.let_go()
            self.qp.leave_line(self.future)
            self.future = None
        elif self.state == PARKED:
            self.state = FINISHED
            self.let_go()
            for waiting in (self.qp.parked, self.qp.delayed):
                if self.future in waiting:
                    waiting.remove(self.future)
            self.future = None
        elif self.state == COMPLETED or (self.state == SENT and self.answered):
            self.state = FINISHED
            self.result = None
            take(self.qp, self)
        elif self.state == SENT:
            self.state = DETACHED
            self.future = None
            self.qp.q.header.n_orphans += 1
            nvq_orphan(&self.qp.q.trackers[self.slot])
            self.qp.ring_now()
            guard(self.qp)
            if self.qp.q.transport != NULL and self.qp.q.transport.abandon(&self.qp.q, self.slot):
                self.let_go()

    cdef inline void wake(self) except *:
        future = self.future
        if future is not None:
            self.future = None
            if not future.done():
                wake(future)
        elif self.observer is not None:
            observer, self.observer = self.observer, None
            if not observer.over():
                observer.answered(self)

    cdef void fail(self, exception) except *:
        """Ends the wait with an exception; the controller's buffers stay."""
        self.failed = True
        self.result = exception
        self.wake()


cdef Request make_request(QueuePair qp, sqe, buffer, Py_ssize_t read_nbytes, bint to_host, uint64_t tag, bint internal, bint driver,
                          Geometry geometry):
    cdef Request request = Request.__new__(Request)
    cdef const unsigned char[::1] raw = sqe
    if raw.shape[0] != 64:
        raise ValueError(f"a command is 64 bytes long, not {raw.shape[0]}")
    memcpy(&request.sqe, &raw[0], 64)
    request.qp = qp
    request.geometry = geometry
    request.tag = tag
    request.raw = True
    request.flags = (NVQ_INTERNAL if internal else 0) | (NVQ_DRIVER if driver else 0)
    if buffer is not None:
        request.hold(buffer, to_host)
        request.nbytes = request.view.len
        request.kind = READ_INTO if to_host else WRITE_FROM
        request.flags |= NVQ_TO_HOST if to_host else NVQ_FROM_HOST
        if request.nbytes == 0:
            request.kind = NO_DATA
    elif read_nbytes > 0:
        request.nbytes = read_nbytes
        request.kind = READ_BYTES
        request.flags |= NVQ_TO_HOST
    request.state = NEW
    return request


cdef str call_name(Request request):
    """Of the call that made it, for messages."""
    if request.raw:
        return "QueuePair.request"
    return "Namespace." + {OPC_READ: "readinto" if request.kind == READ_INTO else "read", OPC_WRITE: "write", OPC_COMPARE: "compare",
                           OPC_FLUSH: "flush"}.get(request.sqe.opcode, "submit")


cdef int never_awaited(str name) except -1:
    """Warns like a coroutine that is dropped before it ran. From __dealloc__: where warnings are
    errors, the error goes to sys.unraisablehook.
    """
    cdef bytes message = f"coroutine '{name}' was never awaited".encode()
    if PyErr_WarnEx(RuntimeWarning, message, 1) < 0:
        PyErr_WriteUnraisable(name)
    return 0


cdef int request_send(Request self, PyObject **result) except -1:
    """One step of the awaitable. 1: *result is the command's result. 0: *result is to be yielded
    to the Task.
    """
    cdef QueuePair qp = self.qp
    if self.future is not None:
        qp.check_thread()
    if self.state != NEW:
        qp.waiting.eager = NVW_EAGER_IN_A_ROW      # the next iteration has started
    if self.state == PARKED:
        if not self.future.done():
            return suspend(self.future, result)
        self.future = None
        self.state = NEW
    if self.state == NEW and not self.failed:
        if self.geometry is not None and self.geometry.state:
            park(qp, self)
            return suspend(self.future, result)
        if not qp.admit(self):
            self.state = QUEUED
            self.future = qp.stand_in_line()
            return suspend(self.future, result)
        if not start(qp, self):
            return suspend(self.future, result)
        if after_post(qp, self):
            qp.q.header.n_eager += 1
    elif self.state == SENT and not self.failed:
        if self.future is None:
            after_yield(qp, self)
    elif self.state == QUEUED and not self.failed:
        if self.future is not None and not self.future.done():
            return suspend(self.future, result)
        self.future = None
        qp.take_turn()
        if self.geometry is not None and self.geometry.state:
            qp.pass_on()
            park(qp, self)
            return suspend(self.future, result)
        if qp.refusal is None and (qp.held or qp.q.n_free == 0):
            # Held, or reset, between the word to go on and now.
            self.future = qp.stand_in_line()
            return suspend(self.future, result)
        if not start(qp, self):
            return suspend(self.future, result)
        after_post(qp, self)
    if self.state == SENT and self.future is None and not self.yields and not self.failed:
        before_sleep(qp)
    if self.failed:
        exception, self.result = self.result, None
        if self.state == SENT:
            self.detach()
        else:
            self.state = FINISHED
        raise exception
    if self.state == COMPLETED:
        self.state = FINISHED
        take(qp, self)
        if self.status:
            if qp.has_memory:      # not if the queue pair was handed over since
                qp.q.header.n_errors += 1
            raise qp.command_error(self.status, self.dw0, PyBytes_FromStringAndSize(<char *>&self.sqe, 64), qp.qid == 0, self.timed_out)
        value = self.result
        self.result = None
        Py_INCREF(value)
        result[0] = <PyObject *>value
        return 1
    if self.state == SENT:
        if self.future is None:
            if self.yields:
                # Back in the next event-loop iteration, as after asyncio.sleep(0): far cheaper than
                # a sleep if the completion comes soon.
                self.yields -= 1
                return next_iteration(qp, result)
            self.future = qp.create_future()
        return suspend(self.future, result)
    if self.state == PARKED:
        return suspend(self.future, result)
    raise RuntimeError("cannot reuse already awaited Request")


cdef inline int suspend(future, PyObject **result) except -1:
    # What Future.__await__ does before it yields itself; a Task then takes its fast path for exact
    # futures.
    future._asyncio_future_blocking = True
    Py_INCREF(future)
    result[0] = <PyObject *>future
    return 0


nva_request_install(Request, <void *>request_send)
