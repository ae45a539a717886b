# Posting commands in the ring.

cdef enum:
    STARVED        # place(): there is no page for it now
    PLACED
    BY_SGL         # sgl.pxi


cdef bint start(QueuePair qp, Request request) except -1:
    """Sends a command for which there is a free id. False: it waits in line for a bounce page.
    Raises with nothing sent and nothing kept.
    """
    cdef int placed
    try:
        if qp.refusal is not None:
            raise qp.refusal
        if request.kind != NO_DATA:
            if request.nbytes > qp.max_transfer:
                raise ValueError(f"a transfer of {request.nbytes} bytes is over this queue's limit of {qp.max_transfer}")
            placed = place(qp, request)
            if placed != PLACED:
                if placed == BY_SGL:
                    send_by_sgl(qp, request)
                    return True
                request.future = starve(qp, request.bounce_class, False)
                request.state = QUEUED
                qp.grant()
                return False
        send(qp, request)
    except BaseException:
        request.state = FINISHED
        request.let_go()
        qp.pass_on()
        raise
    return True


cdef inline int place(QueuePair qp, Request request) except -1:
    """Finds where the device reaches the data: in place, or in bounce pages."""
    cdef Mapping *mapping = NULL
    if qp.q.transport != NULL:
        return place_for_transport(qp, request)
    if request.has_view:
        if not <uintptr_t>request.view.buf & 3:      # PRPs are dword aligned (Base 2.0, 4.1.1)
            ft_acquire(&qp.address_map.lock)
            mapping = find_mapping(qp.address_map, request.view.buf, request.nbytes)
            if mapping != NULL:
                request.iova = mapping.iova + (<uintptr_t>request.view.buf - mapping.begin)
                request.offset = <uintptr_t>request.view.buf - mapping.begin if mapping.is_pool else NVQ_NO_OFFSET
            ft_release(&qp.address_map.lock)
        elif place_by_sgl(qp, request):
            return BY_SGL
    if mapping != NULL:
        return PLACED
    request.bounce_class = size_class(request.nbytes)
    if not take_piece(qp.bounce, request.bounce_class, &request.piece):
        return STARVED
    request.bounced = True
    request.flags |= NVQ_BOUNCE
    request.iova = request.piece.iova
    request.offset = request.piece.offset
    if request.kind == WRITE_FROM:
        memcpy(request.piece.data, request.view.buf, request.nbytes)
    elif request.raw:
        # Answers may be shorter than the place for them: the rest is zeroes, not what another
        # command left there.
        memset(request.piece.data, 0, request.nbytes)
    else:
        nvs_prepare(<uint8_t *>request.piece.data, request.nbytes)
    qp.q.header.n_bounced += 1
    return PLACED


cdef int place_for_transport(QueuePair qp, Request request) except -1:
    """A transport reaches all memory: the caller's buffer, or the bytes object that is going to
    be the result.
    """
    if request.kind == READ_BYTES:
        request.bytes = PyBytes_FromStringAndSize(NULL, request.nbytes)
        request.iova = <uintptr_t>PyBytes_AS_STRING(request.bytes)
    else:
        request.iova = <uintptr_t>request.view.buf
    request.offset = NVQ_NO_OFFSET
    return PLACED


cdef inline int send(QueuePair qp, Request request) except -1:
    cdef int slot = nvq_take(&qp.q)
    cdef nvq_tracker *tracker
    if slot < 0:
        raise RuntimeError(f"queue {qp.qid}: no command id is free")
    tracker = &qp.q.trackers[slot]
    if request.kind != NO_DATA and qp.q.transport != NULL:
        request.sqe.prp1 = request.iova
        request.sqe.prp2 = 0
        tracker.data_offset = NVQ_NO_OFFSET
    elif request.kind != NO_DATA:
        if prp_build(&request.sqe.prp1, request.iova, request.nbytes, nvq_list(&qp.q, slot), nvq_list_iova(&qp.q, slot),
                     qp.q.list_bytes):
            nvq_put(&qp.q, slot)
            raise ValueError(f"a transfer of {request.nbytes} bytes needs a longer PRP list than {qp.q.list_bytes} bytes")
        tracker.data_offset = request.offset
    else:
        tracker.data_offset = NVQ_NO_OFFSET
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
