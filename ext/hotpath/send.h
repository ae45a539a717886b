/*
 * Gives a Cython class the am_send slot (Python 3.10+), which `await` prefers: a result comes back
 * as a value, where __next__ would have to raise StopIteration for every I/O. Cython fills
 * tp_as_async for __await__, and knows no am_send.
 */
#ifndef NVME_ASYNC_HOTPATH_SEND_H
#define NVME_ASYNC_HOTPATH_SEND_H

#include <Python.h>

/* 1: *result is what the awaitable returned; 0: *result is what it yields; -1: raised. A new
 * reference in either case. */
typedef int (*nva_send)(PyObject *self, PyObject **result);

/* One implementation per class that uses this; each instantiates the adapter for itself. */
#define NVA_DEFINE_SEND(name)                                                           \
    static nva_send name##_impl;                                                        \
    static PySendResult name##_slot(PyObject *self, PyObject *value, PyObject **result) \
    {                                                                                   \
        (void)value;                                                                    \
        *result = NULL;                                                                 \
        const int how = name##_impl(self, result);                                      \
        return how < 0 ? PYGEN_ERROR : how ? PYGEN_RETURN : PYGEN_NEXT;                 \
    }                                                                                   \
    static void name##_install(PyObject *type, void *impl)                              \
    {                                                                                   \
        PyTypeObject *t = (PyTypeObject *)type;                                         \
        name##_impl = (nva_send)impl;                                                   \
        t->tp_as_async->am_send = name##_slot;                                          \
        PyType_Modified(t);                                                             \
    }

NVA_DEFINE_SEND(nva_request)
NVA_DEFINE_SEND(nva_batch)

#endif
