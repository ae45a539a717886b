/* Threads that signal one eventfd by one ring, without a lock: each signal counts. */
#include "device/kick_ring.h"

#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>

enum { THREADS = 8, SIGNALS = 1000 };

static struct kick_ring ring;

static void *signalling(void *failures)
{
    for (int i = 0; i < SIGNALS; i++)
        *(int *)failures += !kick_ring_signal(&ring);
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];
    int failures[THREADS] = {0}, failed = 0;
    uint64_t count = 0;
    const int fd = eventfd(0, EFD_NONBLOCK);

    if (!kick_ring_open(&ring, fd)) {
        puts("no io_uring");
        return 0;
    }
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, signalling, &failures[i]);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        failed += failures[i];
    }
    if (read(fd, &count, sizeof count) != sizeof count)
        count = 0;
    printf("%d failed, %lu counted, %u left\n", failed, (unsigned long)count, *ring.cq_tail - *ring.cq_head);
    kick_ring_close(&ring);
    kick_ring_close(&ring);
    close(fd);
    return failed != 0 || count != THREADS * SIGNALS;
}
