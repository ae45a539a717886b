# Awaiters that come back in the next event-loop iteration, as after asyncio.sleep(0): one callback
# of the loop resumes all of a queue pair's. With asyncio.sleep(0) each would have a Handle of its
# own, which costs asyncio more than all else of a command.
#
# A Task that has to wait gets an exact asyncio.Future, which it knows how to sleep on, and adds its
# wakeup as the Future's callback. When the iteration has come, the callback is taken away and
# called as the loop would call it: in the task's context, with a Future that is done. So the
# pending one can be used again. Cancelling the task cancels the Future: then asyncio resumes the
# task, and the Future is dropped.
#
# Only wakeups of Tasks written in C are called so; all else is resumed by the Future's result. In
# asyncio's debug mode, which reports slow steps with the task's name, each awaiter has its Handle;
# and on loops other than asyncio's own, since uvloop's Handles are cheaper than all this.

cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    bint PyCFunction_Check(object it)
    PyObject *PyCFunction_GetSelf(object it)
    Py_ssize_t Py_REFCNT(object it)

# Fewer awaiters with commands out come back by a Handle each, which is cheaper for them.
DEF TURNS_FROM = 3

cdef object Task = asyncio.Task
cdef object Future = asyncio.Future
cdef object remove_done_callback = asyncio.Future.remove_done_callback
cdef bint FUTURES_KNOW_AWAITERS = sys.version_info >= (3, 14)


cdef inline int next_iteration(QueuePair qp, PyObject **result) except -1:
    """What a Task gets that comes back in the next iteration."""
    if not qp.turns and (qp.ready is None or qp.q.n_armed + qp.waiting.due < TURNS_FROM or turns_loop(qp).get_debug()):
        Py_INCREF(None)
        result[0] = <PyObject *>None
        return 0
    if qp.spare_futures:
        future = qp.spare_futures.pop()
    else:
        future = qp.create_future()
    qp.turns.append(future)
    if not qp.turns_planned:
        qp.turns_planned = True
        qp.soon(qp.turns_callback)
    return suspend(future, result)


cdef inline object turns_loop(QueuePair qp):
    return qp.loop if qp.loop is not None else asyncio.get_running_loop()


cdef int take_turns(QueuePair qp) except -1:
    """Resumes the awaiters. The loop calls it, and no task."""
    cdef list turns = qp.turns
    cdef Py_ssize_t n = 0
    qp.turns_planned = False
    qp.turns = []
    if qp.turn_over is None:
        qp.turn_over = qp.create_future()
        qp.turn_over.set_result(None)
    qp.turns_left = len(turns)
    try:
        while n < len(turns):
            future = turns[n]
            turns[n] = None
            n += 1
            qp.turns_left -= 1
            resume(qp, future)
    except BaseException:
        # The end of the loop's run. The others are resumed if it goes on.
        qp.turns = turns[n:] + qp.turns
        if qp.turns and not qp.turns_planned:
            qp.turns_planned = True
            qp.soon(qp.turns_callback)
        raise
    finally:
        qp.turns_left = 0
    return 0


cdef int resume(QueuePair qp, future) except -1:
    """One step of a task. Raises only what ends the loop's run."""
    cdef list callbacks
    if type(future) is not Future:
        if not future.done():
            future.set_result(None)
        return 0
    callbacks = future._callbacks
    if callbacks is None:      # the task was cancelled, or what awaits is no Task
        return 0
    callback, context = <tuple>callbacks[0]
    if len(callbacks) > 1 or not PyCFunction_Check(callback) or not isinstance(<object>PyCFunction_GetSelf(callback), Task):
        future.set_result(None)
        return 0
    try:
        PyContext_Enter(context)
    except RuntimeError:      # it is entered already: a loop runs within it
        future.set_result(None)
        return 0
    try:
        remove_done_callback(future, callback)
        callback(qp.turn_over)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        turns_loop(qp).call_exception_handler({"message": f"Exception in callback {callback!r}", "exception": error})
    finally:
        PyContext_Exit(context)
    # If something else knows it, it is not used again; nor where a Future remembers its awaiters.
    if not FUTURES_KNOW_AWAITERS and Py_REFCNT(future) == 1:
        qp.spare_futures.append(future)
    return 0


cdef int leave_turns(QueuePair qp) except -1:
    """Another loop uses the queue pair from now on."""
    turns, qp.turns = qp.turns, []
    qp.spare_futures, qp.turn_over = [], None
    qp.turns_planned = False
    return wake_all(turns)
