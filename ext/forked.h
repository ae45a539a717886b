/* Memory that is shared with a controller must not be shared with a forked child: coroutines that
 * are dropped there would mark commands, and ring doorbells, of the parent. Each mapping registered
 * here is replaced in the child, by a private copy of its file (a child may read a buffer's
 * content) or, for registers, by unrelated memory. Mappings are made and ended by any thread: a
 * lock, which is also held over a fork, keeps the list whole. */
#ifndef FORKED_H
#define FORKED_H

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

struct forked_mapping {
    struct forked_mapping *next, *previous;
    void *base;
    size_t nbytes;
    int fd; /* of the file, from its start; -1 for registers */
};

static struct forked_mapping forked_mappings = {&forked_mappings, &forked_mappings, NULL, 0, -1};
static pthread_mutex_t forked_lock = PTHREAD_MUTEX_INITIALIZER;
static int forked_generation; /* counts the forks between the first process and this one */

static inline void forked_add(struct forked_mapping *mapping, void *base, size_t nbytes, int fd)
{
    pthread_mutex_lock(&forked_lock);
    *mapping = (struct forked_mapping){&forked_mappings, forked_mappings.previous, base, nbytes, fd};
    mapping->previous->next = mapping->next->previous = mapping;
    pthread_mutex_unlock(&forked_lock);
}

/* Does nothing for one that wasn't added. */
static inline void forked_remove(struct forked_mapping *mapping)
{
    pthread_mutex_lock(&forked_lock);
    if (mapping->next != NULL) {
        mapping->next->previous = mapping->previous;
        mapping->previous->next = mapping->next;
        mapping->next = mapping->previous = NULL;
    }
    pthread_mutex_unlock(&forked_lock);
}

static void forked_before(void)
{
    pthread_mutex_lock(&forked_lock);
}

static void forked_in_parent(void)
{
    pthread_mutex_unlock(&forked_lock);
}

static void forked_in_child(void)
{
    forked_generation++;
    for (struct forked_mapping *at = forked_mappings.next; at != &forked_mappings; at = at->next) {
        const int rights = PROT_READ | PROT_WRITE, flags = MAP_FIXED | MAP_PRIVATE | MAP_NORESERVE;

        if (at->fd >= 0 && mmap(at->base, at->nbytes, rights, flags, at->fd, 0) != MAP_FAILED)
            continue;
        if (mmap(at->base, at->nbytes, rights, flags | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
            abort(); /* rather than continue with the parent's memory */
    }
    pthread_mutex_unlock(&forked_lock);
}

static int forked_watch(void)
{
    return pthread_atfork(forked_before, forked_in_parent, forked_in_child);
}

#endif
