# A source of commands (source.h) on a queue pair: commands without end, and no Python for each.

cdef extern from "hotpath/source.h":
    const char *NVQ_SOURCE

    struct nvq_cell:
        nvb_batch batch
        uint16_t status
        bint busy
        uint64_t due_ns

    struct nvq_source:
        int (*pump)(void *self, nvq *q, nvb_slot *slots, uint32_t keep, uint64_t slice_ns, nvw_budget *budget, unsigned *ring) noexcept nogil
        void (*end)(void *self) noexcept nogil
        void *self
        uint8_t *cells
        uint32_t n_cells
        bint wants_read, wants_write
        uint32_t retries, n_delayed
        uint32_t retry_ms[4]

    enum: NVB_GIVEN_UP

    nvq_cell *nvq_cell_at(const nvq_source *source, uint32_t i) nogil
    bint nvq_owns(const nvq_source *source, const nvb_batch *batch) nogil
    uint64_t nvq_source_due(const nvq_source *source) nogil
    uint32_t nvq_source_out(const nvq_source *source) nogil


@cython.final
cdef class Stream:
    """An awaitable that serves a source until it ends, on the event loop of its queue pair, whose
    holds, timeouts and resets apply to it too: commands whose opcode may be repeated are sent again
    after a reset, others end with an error that the source passes on.

    connection: has `source`, a capsule named NVQ_SOURCE, and `fd`, its socket; kept as long as the
        controller has any of its commands
    geometry: of the namespace: nothing is sent while it is held, and once it has expired the stream
        ends with its error
    on_sleep(stream, read, write): the loop is to call stream.wake() when connection.fd is readable
        or writable; on_wake(stream): no longer

    Awaited once. It yields to the loop after each slice. Cancelling ends the source.
    """

    cdef QueuePair qp
    cdef nvq_source *source
    cdef object connection, on_sleep, on_wake
    cdef Geometry geometry
    cdef object future, failure
    cdef bint started, finished, watching
    cdef nvw_budget budget

    def __init__(self, QueuePair qp, connection, *, Geometry geometry, on_sleep, on_wake):
        self.source = <nvq_source *>PyCapsule_GetPointer(connection.source, NVQ_SOURCE)
        self.qp, self.connection, self.geometry = qp, connection, geometry
        self.on_sleep, self.on_wake = on_sleep, on_wake
        set_retries(qp, self.source)

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        if self.finished:
            raise RuntimeError("cannot reuse already awaited Stream")
        try:
            return serve(self)
        except BaseException:
            self.leave()
            raise

    def throw(self, type_, value=None, traceback=None):
        self.leave()
        if value is None:
            value = type_() if isinstance(type_, type) else type_
        raise value

    def close(self):
        self.leave()

    def wake(self):
        """The source's socket is ready."""
        self.unwatch()
        if self.future is not None:
            future, self.future = self.future, None
            if not future.done():
                wake(future)

    cdef void unwatch(self) except *:
        if self.watching:
            self.watching = False
            self.on_wake(self)

    cdef void fail(self, exception) except *:
        self.failure = exception
        self.wake()

    cdef void leave(self) except *:
        """Nothing more is sent. What is out keeps the source's memory until it has completed."""
        if self.finished or (self.started and self.qp.ask_owner(self.close)):
            return
        self.finished = True
        self.unwatch()
        self.future = None
        self.source.end(self.source.self)
        if self.started:
            let_stream_go(self.qp, self)
            if self.qp.has_memory and self.qp.q.n_armed:
                guard(self.qp)

    cdef bint forbidden(self) except -1:
        if self.geometry is not None and self.geometry.state == EXPIRED:
            raise self.geometry.error
        return self.qp.held or (self.geometry is not None and self.geometry.state != SOUND)

    cdef bint delivered(self) noexcept:
        """Has the event loop taken a completion that the source doesn't know of?"""
        cdef uint32_t i
        cdef nvq_cell *cell
        for i in range(self.source.n_cells):
            cell = nvq_cell_at(self.source, i)
            if cell.busy and cell.batch.done and not cell.due_ns:
                return True
        return False


cdef object serve(Stream self):
    """Until the source has ended (StopIteration), or what the task waits for."""
    cdef QueuePair qp = self.qp
    cdef unsigned ring = 0
    cdef int why
    cdef uint32_t keep
    cdef bint forbidden
    if self.failure is not None:
        raise self.failure
    qp.check_thread()
    if not self.started:
        self.started = True
        qp.streams.append(self)
    self.unwatch()
    self.future = None
    while True:
        why = NVB_QUIET
        if qp.refusal is not None:
            raise qp.refusal
        forbidden = self.forbidden()
        if not forbidden:
            self.budget.limit_ns = nvw_spin_limit(&qp.waiting) if qp.waiting.mode != NVW_INTERRUPT else 0
            keep = <uint32_t>(qp.n_granted + len(qp.line))
            with nogil:
                why = self.source.pump(self.source.self, &qp.q, qp.slots, keep, SLICE_NS, &self.budget, &ring)
            if qp.q.n_armed:
                qp.plan_watch()
            if ring & 1:
                qp.write_sq()
            if ring & 2:
                qp.write_cq()
            if qp.q.n_done:
                deliver(qp)
            if why == NVB_STRAYS:
                qp.report_strays()
                why = NVB_SLICE
        if self.failure is not None:
            raise self.failure
        if why == NVB_DONE:
            qp.ring_now()
            qp.acknowledge()
            self.leave()
            raise StopIteration(self.connection)
        if why == NVB_SLICE:
            qp.ring_now()
            return None
        if why == NVB_QUIET:
            qp.ring_now()
            if qp.waiting.mode == NVW_POLL and qp.q.n_armed:
                qp.plan_poll()
            if qp.q.n_armed:
                before_sleep(qp)
            else:
                qp.acknowledge()
            if self.failure is not None:
                raise self.failure
            if forbidden or not self.delivered():
                break
    self.future = qp.create_future()
    if not forbidden and (self.source.wants_read or self.source.wants_write):
        self.watching = True
        self.on_sleep(self, self.source.wants_read, self.source.wants_write)
    if self.source.n_delayed and not forbidden:
        qp.call_later(max(0.0, (<long long>nvq_source_due(self.source) - <long long>nvq_now_ns()) * 1e-9), self.wake)
    self.future._asyncio_future_blocking = True
    return self.future


cdef int set_retries(QueuePair qp, nvq_source *source) except -1:
    """After which delays this source's failed commands are sent again: as those of awaiters."""
    cdef int crd
    source.retries = 0
    for crd in range(4):
        seconds = qp.retry_delay(crd << 11 | COMMAND_INTERRUPTED, OPC_READ, False, 0) if qp.retry_delay is not None else None
        source.retry_ms[crd] = 0xffffffff if seconds is None else round(seconds * 1000)
        if seconds is not None and not source.retries:
            source.retries = 1
            while qp.retry_delay(crd << 11 | COMMAND_INTERRUPTED, OPC_READ, False, source.retries) is not None:
                source.retries += 1
    return 0


cdef void go_on_with_streams(QueuePair qp) except *:
    """Completions were delivered, or a hold has ended: sleeping streams go on."""
    cdef Stream stream
    for stream in list(qp.streams):
        if stream.finished:
            let_stream_go(qp, stream)
        elif stream.future is not None:
            stream.wake()


cdef void let_stream_go(QueuePair qp, Stream stream) except *:
    """A stream that is over is kept until nothing of it is out."""
    if nvq_source_out(stream.source) == 0 and stream in qp.streams:
        qp.streams.remove(stream)


cdef void fail_streams(QueuePair qp, exception) except *:
    cdef Stream stream
    for stream in list(qp.streams):
        if not stream.finished:
            stream.fail(exception)


cdef void restart_streams(QueuePair qp, retryable) except *:
    """Before commands are sent again: cells that may not be are over. See nvb_again()."""
    cdef Stream stream
    cdef nvq_cell *cell
    cdef uint32_t i
    for stream in qp.streams:
        for i in range(stream.source.n_cells):
            cell = nvq_cell_at(stream.source, i)
            if cell.batch.out:
                cell.batch.out = 0
                cell.batch.stopped = stream.finished
                if not stream.finished and cell.batch.command.opcode not in retryable:
                    cell.batch.stopped = True
                    cell.batch.done = cell.batch.failed = 1
                    cell.status = NVB_GIVEN_UP


cdef void streams_restarted(QueuePair qp) except *:
    cdef Stream stream
    cdef uint32_t i
    for stream in list(qp.streams):
        for i in range(stream.source.n_cells):
            nvq_cell_at(stream.source, i).batch.stopped = False
    go_on_with_streams(qp)


cdef void release_streams(QueuePair qp) except *:
    """The controller reaches no memory any more."""
    cdef Stream stream
    cdef nvq_cell *cell
    cdef uint32_t i
    for stream in list(qp.streams):
        for i in range(stream.source.n_cells):
            cell = nvq_cell_at(stream.source, i)
            if cell.batch.out:
                cell.batch.out = 0
                cell.batch.done = cell.batch.failed = 1
                cell.status = NVB_GIVEN_UP
        let_stream_go(qp, stream)


cdef bint streams_use(QueuePair qp, uint64_t iova, uint64_t nbytes) noexcept:
    cdef Stream stream
    cdef nvq_cell *cell
    cdef uint32_t i
    for stream in qp.streams:
        for i in range(stream.source.n_cells):
            cell = nvq_cell_at(stream.source, i)
            if cell.batch.out and cell.batch.iova < iova + nbytes and iova < cell.batch.iova + cell.batch.nbytes:
                return True
    return False


cdef object geometry_of_stream(QueuePair qp, nvb_batch *batch):
    """The geometry of the stream that this cell is of, or None."""
    cdef Stream stream
    for stream in qp.streams:
        if nvq_owns(stream.source, batch):
            return stream.geometry
    return None
