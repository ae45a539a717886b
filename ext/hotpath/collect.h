/*
 * Shows the garbage collector the references in a queue pair's C array: the requests in flight.
 * Without it a dropped controller, whose event requests are always outstanding, would never be
 * collected, nor its descriptors closed. Collected objects were reachable only through their
 * Controller, whose __del__ closes the device before anything is freed.
 */
#ifndef NVME_ASYNC_HOTPATH_COLLECT_H
#define NVME_ASYNC_HOTPATH_COLLECT_H

#include <Python.h>
#include <stdint.h>

static traverseproc nva_traverse_rest;
static size_t nva_waiters_at, nva_count_at;

/* tp_traverse of the type: its own, then the requests in flight. Called by the garbage collector,
 * with the GIL or a stopped world. */
static int nva_traverse(PyObject *self, visitproc visit, void *arg)
{
    PyObject **waiters = *(PyObject ***)((char *)self + nva_waiters_at);
    const uint32_t count = *(uint32_t *)((char *)self + nva_count_at);
    const int stop = nva_traverse_rest(self, visit, arg);
    if (stop || !waiters)
        return stop;
    for (uint32_t i = 0; i < count; i++)
        Py_VISIT(waiters[i]);
    return 0;
}

/* waiters_at: where the type has its PyObject **, NULL or count_at's uint32_t long. */
static void nva_traverse_install(PyObject *type, size_t waiters_at, size_t count_at)
{
    nva_traverse_rest = ((PyTypeObject *)type)->tp_traverse;
    nva_waiters_at = waiters_at;
    nva_count_at = count_at;
    ((PyTypeObject *)type)->tp_traverse = nva_traverse;
}

#endif
