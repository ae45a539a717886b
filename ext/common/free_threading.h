/* A lock that costs nothing where the interpreter has a global one, which then does its work. On a
 * free-threaded build (Py_GIL_DISABLED) it is a PyMutex: a thread that waits for it lets go of the
 * interpreter. Held for a few instructions, never while Python code runs. */
#ifndef FREE_THREADING_H
#define FREE_THREADING_H

#include <Python.h>

#ifdef Py_GIL_DISABLED

typedef PyMutex ft_lock;

static inline void ft_acquire(ft_lock *lock)
{
    PyMutex_Lock(lock);
}

static inline void ft_release(ft_lock *lock)
{
    PyMutex_Unlock(lock);
}

#define FT_GLOBAL_LOCK 0

#else

typedef struct {
    char unused;
} ft_lock;

static inline void ft_acquire(ft_lock *lock)
{
    (void)lock;
}

static inline void ft_release(ft_lock *lock)
{
    (void)lock;
}

#define FT_GLOBAL_LOCK 1

#endif

#endif
