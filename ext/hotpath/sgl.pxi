# Commands whose data an SGL describes, because PRPs can't: they begin at an odd byte, or lie in
# several places. Only at controllers that offer SGLs (`Rings.sgl`), and for memory that the device
# reaches; everything else is bounced.

cdef enum:
    SGL_BYTE = 1      # SGLS bits 1:0 of Identify Controller (Base 2.0, figure 275)
    SGL_DWORD = 2     # addresses and lengths are multiples of 4
    SCATTERED = 1     # stands in view.buf for the runs of the Scatter in `bytes`


cdef bint place_by_sgl(QueuePair qp, Request request) except -1:
    """Finds where the device reaches data that PRPs can't describe. False: they are bounced."""
    cdef Mapping *mapping
    request.sqe.flags &= <uint8_t>~NVQ_PSDT
    if <uintptr_t>request.view.buf == SCATTERED:
        if not located(qp, <Scatter?>request.bytes, (<Scatter>request.bytes).metadata):
            raise ConfigurationError(f"queue {qp.qid}: the controller no longer reaches the scattered buffers in place")
    elif qp.sgl != SGL_BYTE:
        return False
    else:
        ft_acquire(&qp.address_map.lock)
        mapping = find_mapping(qp.address_map, request.view.buf, request.nbytes)
        if mapping != NULL:
            request.iova = mapping.iova + (<uintptr_t>request.view.buf - mapping.begin)
            request.offset = <uintptr_t>request.view.buf - mapping.begin if mapping.is_pool else NVQ_NO_OFFSET
        ft_release(&qp.address_map.lock)
        if mapping == NULL:
            return False
    request.sqe.flags |= NVQ_PSDT_SGL
    return True


cdef bint located(QueuePair qp, Scatter data, Scatter metadata) except -1:
    """Sets the device addresses. False: the device doesn't reach all of it by SGLs."""
    cdef unsigned mask = 3 if qp.sgl == SGL_DWORD else 0
    if not qp.sgl or qp.q.transport != NULL or not data.locate(qp.address_map, mask):
        return False
    return metadata is None or (qp.sgl_metadata and metadata.locate(qp.address_map, mask))


cdef int send_placed(QueuePair qp, Request request) except -1:
    """send(), for either kind of request."""
    return send_by_sgl(qp, request) if request.sqe.flags & NVQ_PSDT and qp.q.transport == NULL else send(qp, request)


cdef int send_by_sgl(QueuePair qp, Request request) except -1:
    cdef Scatter scatter
    cdef int slot = nvq_take(&qp.q)
    if slot < 0:
        raise RuntimeError(f"queue {qp.qid}: no command id is free")
    if request.bytes is None:
        nvq_sgl_block(&request.sqe, request.iova, <uint32_t>request.nbytes)
        return post(qp, request, slot, request.offset)
    scatter = <Scatter>request.bytes
    if scatter.n_entries() > nvq_sgl_room(qp.q.list_bytes):
        nvq_put(&qp.q, slot)
        raise ValueError(f"{scatter.n_entries()} descriptors: a command of this queue has room for {nvq_sgl_room(qp.q.list_bytes)}")
    cdef uint64_t *list_ = nvq_list(&qp.q, slot)
    if scatter.n_runs == 1:
        nvq_sgl_block(&request.sqe, scatter.runs[0].iova, <uint32_t>request.nbytes)
    else:
        describe(list_, 0, scatter)
        nvq_sgl_segment(&request.sqe, list_, nvq_list_iova(&qp.q, slot), qp.q.list_bytes, <uint32_t>scatter.n_runs)
    if scatter.metadata is not None:
        if scatter.metadata.n_runs > 1:
            describe(list_, nvq_sgl_count(&request.sqe) + 1, scatter.metadata)
        nvq_sgl_metadata(&request.sqe, list_, nvq_list_iova(&qp.q, slot), qp.q.list_bytes, <uint32_t>scatter.metadata.n_runs,
                         scatter.metadata.runs[0].iova, <uint32_t>scatter.metadata.nbytes)
    return post(qp, request, slot, NVQ_NO_OFFSET)


cdef void describe(uint64_t *list_, uint32_t first, Scatter scatter) noexcept:
    """Fills in a data block for each run, from descriptor `first` of the list area on."""
    cdef nvq_sgl *entry
    cdef uint32_t i
    for i in range(<uint32_t>scatter.n_runs):
        entry = nvq_sgl_at(list_, first + i)
        memset(entry, 0, sizeof(nvq_sgl))
        entry.address = scatter.runs[i].iova
        entry.length = <uint32_t>scatter.runs[i].nbytes


cdef int post(QueuePair qp, Request request, int slot, uint64_t offset) except -1:
    """The end of send(), which has it inline, because every I/O would pay for the call. offset: of
    the data in the pool.
    """
    cdef nvq_tracker *tracker = &qp.q.trackers[slot]
    tracker.data_offset = offset
    tracker.sqe = request.sqe
    tracker.flags = request.flags
    tracker.tag = request.tag
    tracker.data_nbytes = <uint32_t>request.nbytes
    nvq_post(&qp.q, slot)
    request.slot = slot
    request.state = SENT
    Py_INCREF(request)
    qp.waiters[slot] = <PyObject *>request
    qp.plan_watch()
    return 0


def scatter_room(QueuePair qp, Scatter scatter not None, Scatter metadata=None):
    """How many descriptors one command may have, if the controller reaches this data (and
    metadata) without a copy; else 0.
    """
    return nvq_sgl_room(qp.q.list_bytes) if located(qp, scatter, metadata) else 0


def scattered(QueuePair qp, sqe, Scatter scatter not None, *, bint to_host, Geometry geometry=None):
    """A command as an awaitable, whose data, and scatter.metadata, have at most scatter_room()
    descriptors (Scatter.entries), filled in place or sent from there; the result is their length,
    or None. They are held until the controller is done with them.
    """
    cdef Request request = Request.__new__(Request)
    cdef const unsigned char[::1] raw = sqe
    if raw.shape[0] != 64:
        raise ValueError(f"a command is 64 bytes long, not {raw.shape[0]}")
    if qp.q.transport != NULL or not scatter.nbytes:
        raise ValueError("scattered data need a device that reaches them, and at least a byte")
    memcpy(&request.sqe, &raw[0], 64)
    request.qp = qp
    request.geometry = geometry
    request.view.buf = <void *>SCATTERED      # view.obj is NULL: there is nothing to release
    request.has_view = True
    request.bytes = scatter
    request.nbytes = scatter.nbytes
    request.kind = READ_INTO if to_host else WRITE_FROM
    request.flags = NVQ_TO_HOST if to_host else NVQ_FROM_HOST
    request.state = NEW
    return request


cdef bint data_touches(Request request, uint64_t iova, uint64_t nbytes) noexcept:
    """Does this command, which is in flight, transfer data within [iova, iova + nbytes)?"""
    if request.bytes is not None and type(request.bytes) is Scatter:
        return (<Scatter>request.bytes).touches(iova, nbytes)
    return request.nbytes and request.iova < iova + nbytes and iova < request.iova + request.nbytes


cdef void find_places(nvq *q, uint32_t slot, const nvq_measure *m, list inside, list outside) except *:
    """Of an adopted command with an SGL: its data's places by the SGL, which was verified."""
    cdef nvq_tracker *t = &q.trackers[slot]
    cdef uint32_t n = nvq_sgl_count(&t.sqe)
    cdef uint32_t used = nvq_sgl_used(&t.sqe, nvq_list(q, slot), q.list_bytes)
    cdef uint32_t i
    cdef uint64_t address
    cdef uint64_t nbytes
    for i in range(used + (n == 0)):
        if i == n and used > n + 1:
            continue      # it leads to those of the metadata
        address = nvq_sgl_at(nvq_list(q, slot), i).address if i < used else t.sqe.prp1
        nbytes = nvq_sgl_at(nvq_list(q, slot), i).length if i < used else t.data_nbytes
        if m.pool_iova <= address < m.pool_iova + m.pool_nbytes:
            inside.append((address - m.pool_iova, nbytes))
        else:
            outside.append((address, nbytes))
