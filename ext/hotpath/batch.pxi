# Many commands, one await.

cdef extern from "hotpath/batch.h":
    struct nvb_piece:
        uint8_t *data
        uint64_t iova, offset

    struct nvb_batch:
        nvq_sqe command
        const uint64_t *lbas
        uint16_t *status
        uint8_t *data
        uint64_t iova, offset
        nvb_piece *pieces
        uint32_t n_pieces, nbytes, n, next, done, failed, out, depth
        uint16_t flags
        bint bounced, stopped

    struct nvb_slot:
        nvb_batch *batch
        uint32_t element, attempts
        nvb_piece piece

    enum: NVB_DONE, NVB_SLICE, NVB_QUIET, NVB_REGISTER, NVB_STRAYS

    void nvb_prepare(nvb_batch *b) nogil
    int nvb_post(nvq *q, nvb_slot *slots, nvb_batch *b, uint32_t element, const nvb_piece *piece) nogil
    bint nvb_again(nvq *q, nvb_slot *slots, const nvb_slot *old, bint rung, uint32_t limit) nogil
    uint32_t nvb_fill(nvq *q, nvb_slot *slots, nvb_batch *b, uint32_t keep) nogil
    void nvb_finish(nvq *q, nvb_slot *slots, unsigned slot) nogil
    int nvb_pump(nvq *q, nvb_slot *slots, nvb_batch *b, uint32_t keep, uint64_t slice_ns, nvw_budget *budget, unsigned *ring) nogil

DEF BOUNCE_BYTES = 8 << 20  # bounce pages of a batch with a default depth: more in flight at once are no faster
DEF BOUNCE_PIECES = 32      # but at least so many; with fewer a batch doesn't start while the memory can grow
DEF SLICE_NS = 100_000     # one run of a batch, before other tasks of the loop get their turn


@cython.final
cdef class Batch:
    """An awaitable for many commands; made by QueuePair.batch(). Its result is itself: statuses,
    and how many failed.

    Awaited once. While it runs, the GIL is released; it yields to the loop after each slice, and
    sleeps on the interrupt if the controller is slow. Cancelling stops the sending; commands in
    flight keep their memory until they complete.
    """

    cdef nvb_batch b
    cdef QueuePair qp
    cdef Geometry geometry             # of the namespace that it was sized for, or None
    cdef object future
    cdef object failure
    cdef Py_buffer lbas_view
    cdef Py_buffer data_view
    cdef Py_buffer status_view
    cdef bint has_lbas, has_data, has_status
    cdef int bounce_class
    cdef bint made, started, finished
    cdef bint starving                 # waits for bounce pages before the first command
    cdef bint any_depth
    cdef bint answered                 # done, except for one event-loop iteration for other tasks first
    cdef readonly object statuses      # array of uint16, one for each element: 0 = success, otherwise the 15-bit status field

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        cdef PyObject *result = NULL
        cdef int how = batch_send(self, &result)
        cdef object it = <object>result
        Py_DECREF(it)
        if how:
            raise StopIteration(it)
        return it

    def throw(self, type_, value=None, traceback=None):
        self.detach()
        if value is None:
            value = type_() if isinstance(type_, type) else type_
        raise value

    def close(self):
        self.detach()

    def __len__(self):
        return self.b.n

    @property
    def failed(self):
        """How many elements failed."""
        return self.b.failed

    @property
    def done(self):
        """How many elements are complete, including failed ones."""
        return self.b.done

    def command(self, uint32_t element):
        """The 64 bytes of one element's command, without PRPs."""
        cdef nvq_sqe sqe = self.b.command
        if element >= self.b.n:
            raise IndexError(f"element {element} of {self.b.n}")
        sqe.cdw10 = <uint32_t>self.b.lbas[element]
        sqe.cdw11 = <uint32_t>(self.b.lbas[element] >> 32)
        return PyBytes_FromStringAndSize(<char *>&sqe, 64)

    def __repr__(self):
        return f"<Batch of {self.b.n}, opcode={self.b.command.opcode:#04x} qid={self.qp.qid}: {self.b.done} done, {self.b.failed} failed>"

    def __dealloc__(self):
        # While anything is in flight the queue pair keeps this object alive.
        if self.has_data:
            PyBuffer_Release(&self.data_view)
        if self.has_lbas:
            PyBuffer_Release(&self.lbas_view)
        if self.has_status:
            PyBuffer_Release(&self.status_view)
        free(self.b.pieces)
        if self.made and not self.started and not self.starving and not self.finished:
            never_awaited("QueuePair.batch")

    cdef bint begin(self) except -1:
        """Bounce pages for as many as can be in flight at once, or the buffer's address if the
        device can access it. False: waits for pages.
        """
        cdef Mapping *mapping = NULL
        cdef Piece piece
        cdef QueuePair qp = self.qp
        cdef uint32_t wanted = min(self.b.depth, self.b.n)
        if qp.refusal is not None:
            raise qp.refusal
        qp.check_thread()
        if self.b.data == NULL or wanted == 0:
            self.b.offset = NVQ_NO_OFFSET
            nvb_prepare(&self.b)
            return True
        if qp.q.transport != NULL:
            self.b.iova = <uintptr_t>self.b.data
            self.b.offset = NVQ_NO_OFFSET
            nvb_prepare(&self.b)
            return True
        if not <uintptr_t>self.b.data & 3:
            ft_acquire(&qp.address_map.lock)
            mapping = find_mapping(qp.address_map, self.b.data, <uint64_t>self.b.nbytes * self.b.n)
            if mapping != NULL and self.b.pieces == NULL:
                self.b.iova = mapping.iova + (<uintptr_t>self.b.data - mapping.begin)
                self.b.offset = <uintptr_t>self.b.data - mapping.begin if mapping.is_pool else NVQ_NO_OFFSET
            ft_release(&qp.address_map.lock)
        if mapping != NULL and self.b.pieces == NULL:
            nvb_prepare(&self.b)
            return True
        self.bounce_class = size_class(self.b.nbytes)
        if self.any_depth:
            wanted = min(wanted, max(BOUNCE_PIECES, BOUNCE_BYTES >> (12 + self.bounce_class)))
        if self.b.pieces == NULL:
            self.b.pieces = <nvb_piece *>calloc(wanted, sizeof(nvb_piece))
            if self.b.pieces == NULL:
                raise MemoryError()
            self.b.bounced = True
            self.b.flags |= NVQ_BOUNCE
            nvb_prepare(&self.b)
        while self.b.n_pieces < wanted and take_piece(qp.bounce, self.bounce_class, &piece):
            self.b.pieces[self.b.n_pieces] = nvb_piece(<uint8_t *>piece.data, piece.iova, piece.offset)
            self.b.n_pieces += 1
        if self.b.n_pieces < min(wanted, BOUNCE_PIECES):
            self.future = starve(qp, self.bounce_class, self.b.n_pieces > 0)
            if self.future is not None:
                self.starving = True
                return False
        if self.b.n_pieces < min(self.b.depth, self.b.n):
            self.b.depth = self.b.n_pieces
        return True

    cdef void let_go(self) noexcept:
        """Nothing is in flight any more: pages and buffers are released."""
        cdef nvb_piece *piece
        while self.b.n_pieces:
            self.b.n_pieces -= 1
            piece = &self.b.pieces[self.b.n_pieces]
            give_piece(self.qp.bounce, self.bounce_class, Piece(<char *>piece.data, piece.iova, piece.offset))
        if self.has_data:
            PyBuffer_Release(&self.data_view)
            self.has_data = False
            self.b.data = NULL

    cdef void detach(self) except *:
        """The awaiter was cancelled; as Request.detach()."""
        if self.finished or ((self.started or self.starving) and self.qp.ask_owner(self.close)):
            return
        self.finished = True
        self.b.stopped = True
        if self.starving:
            self.starving = False
            self.qp.leave_line(self.future)
        self.future = None
        if self.started:
            leave_batches(self.qp, self)
            if self.b.out:
                guard(self.qp)
        else:
            self.give_up()

    cdef void give_up(self) except *:
        """Nothing was sent."""
        cdef Py_ssize_t n = self.b.n_pieces
        self.finished = True
        self.let_go()
        if n:
            feed(self.qp, n)

    cdef void fail(self, exception) except *:
        self.failure = exception
        self.b.stopped = True
        self.wake()

    cdef void wake(self) except *:
        future = self.future
        if future is not None:
            self.future = None
            if not future.done():
                wake(future)


cdef Batch make_batch(QueuePair qp, uint8_t opcode, uint32_t nsid, lbas, uint32_t blocks, data, uint32_t nbytes, bint to_host,
                      uint32_t depth, uint32_t flags, Geometry geometry):
    cdef Batch batch = Batch.__new__(Batch)
    qp.check_open()
    batch.qp = qp
    batch.geometry = geometry
    export_bytes(lbas, &batch.lbas_view, False)
    batch.has_lbas = True
    if batch.lbas_view.itemsize != 8 and batch.lbas_view.itemsize != 1 or batch.lbas_view.len % 8:
        raise ValueError(f"lbas has items of {batch.lbas_view.itemsize} bytes, 64-bit integers are needed")
    if batch.lbas_view.len // 8 >= 1 << 32:
        raise ValueError(f"{batch.lbas_view.len // 8} elements are over the limit of 2**32 - 1")
    batch.b.n = <uint32_t>(batch.lbas_view.len // 8)
    batch.b.lbas = <const uint64_t *>batch.lbas_view.buf
    batch.b.nbytes = nbytes
    batch.b.depth = min(depth, qp.q.n_trackers) if depth else qp.q.n_trackers
    batch.any_depth = depth == 0
    if data is not None:
        if nbytes > qp.max_transfer or nbytes == 0:
            raise ValueError(f"a transfer of {nbytes} bytes, must be 1 to {qp.max_transfer}, this queue's limit")
        export_bytes(data, &batch.data_view, to_host)
        batch.has_data = True
        if <uint64_t>batch.data_view.len != <uint64_t>nbytes * batch.b.n:
            raise ValueError(f"{batch.b.n} elements of {nbytes} bytes need {nbytes * batch.b.n} bytes, the buffer has "
                             f"{batch.data_view.len}")
        batch.b.data = <uint8_t *>batch.data_view.buf
        batch.b.flags = NVQ_TO_HOST if to_host else NVQ_FROM_HOST
    batch.b.command.opcode = opcode
    batch.b.command.nsid = nsid
    batch.b.command.cdw12 = (blocks - 1) | flags
    batch.statuses = array("H", bytes(2 * batch.b.n))
    PyObject_GetBuffer(batch.statuses, &batch.status_view, PyBUF_WRITABLE)
    batch.has_status = True
    batch.b.status = <uint16_t *>batch.status_view.buf
    batch.made = True
    return batch


cdef int batch_send(Batch self, PyObject **result) except -1:
    cdef QueuePair qp = self.qp
    cdef unsigned ring = 0
    cdef int why = NVB_QUIET
    cdef uint64_t begin
    cdef uint32_t keep, done
    if self.answered:
        self.answered = False
        Py_INCREF(self)
        result[0] = <PyObject *>self
        return 1
    if self.finished:
        raise RuntimeError("cannot reuse already awaited Batch")
    if self.started:
        qp.check_thread()
    if self.future is not None and not self.future.done():
        return suspend(self.future, result)
    self.future = None
    if self.starving:
        self.starving = False
        qp.take_turn()
    forbid(self)
    if self.failure is not None:
        self.detach()
        raise self.failure
    if not self.started:
        try:
            if not self.begin():
                return suspend(self.future, result)
        except BaseException:
            self.give_up()
            raise
        self.started = True
        qp.batches.append(self)
        qp.plan_watch()
    begin = nvq_now_ns()
    while self.b.done < self.b.n:
        if not qp.held and not forbid(self):
            qp.waiting.batch.limit_ns = nvw_spin_limit(&qp.waiting) if qp.waiting.mode != NVW_INTERRUPT else 0
            keep = <uint32_t>(qp.n_granted + len(qp.line))
            with nogil:
                why = nvb_pump(&qp.q, qp.slots, &self.b, keep, SLICE_NS, &qp.waiting.batch, &ring)
            if ring & 1:
                qp.write_sq()
            if ring & 2:
                qp.write_cq()
            if qp.q.n_done:
                deliver(qp)
            if why == NVB_STRAYS:
                qp.report_strays()
                why = NVB_SLICE
            if why == NVB_SLICE and self.b.done < self.b.n:
                qp.ring_now()
                qp.waiting.pumped_ns = 0
                Py_INCREF(None)
                result[0] = <PyObject *>None
                return 0
        else:
            why = NVB_QUIET
        if self.failure is not None:
            break
        if why == NVB_QUIET:
            done = self.b.done
            qp.ring_now()
            if qp.waiting.mode == NVW_POLL:
                qp.plan_poll()
            before_sleep(qp)
            if self.b.done == done:
                break
    if self.failure is not None:
        self.detach()
        raise self.failure
    if self.b.done < self.b.n:
        self.future = qp.create_future()
        return suspend(self.future, result)
    qp.acknowledge()
    self.detach()
    qp.waiting.pumped_ns += nvq_now_ns() - begin
    if qp.waiting.pumped_ns >= SLICE_NS:
        # Consecutive short batches that never had to wait load the loop like a long one.
        qp.waiting.pumped_ns = 0
        self.answered = True
        Py_INCREF(None)
        result[0] = <PyObject *>None
        return 0
    Py_INCREF(self)
    result[0] = <PyObject *>self
    return 1


cdef bint forbid(Batch batch) except -1:
    """Must the batch send nothing for now? If its namespace has changed, it fails."""
    if batch.geometry is None or not batch.geometry.state:
        return False
    if batch.geometry.state == EXPIRED and batch.failure is None and batch.b.done < batch.b.n:
        batch.fail(batch.geometry.error)
    return True


cdef void go_on_with_batches(QueuePair qp) except *:
    """Elements of sleeping batches have completed: the next ones are sent; finished batches wake
    up.
    """
    cdef Batch batch
    for batch in list(qp.batches):
        if batch.b.stopped:
            leave_batches(qp, batch)
        elif batch.future is not None:
            if not qp.held and not forbid(batch):
                nvb_fill(&qp.q, qp.slots, &batch.b, <uint32_t>(qp.n_granted + len(qp.line)))
            if batch.b.done == batch.b.n:
                batch.wake()
    qp.ring_now()
    if qp.q.n_armed:
        guard(qp)
        if qp.waiting.mode == NVW_POLL:
            qp.plan_poll()


cdef void leave_batches(QueuePair qp, Batch batch) except *:
    """A batch that has ended, or whose awaiter was cancelled, is kept until none of it is in
    flight.
    """
    cdef Py_ssize_t n = batch.b.n_pieces
    if batch.b.out == 0 and batch in qp.batches:
        qp.batches.remove(batch)
        batch.let_go()
        if qp.starved:
            feed(qp, n)


nva_batch_install(Batch, <void *>batch_send)
