/*
 * The emulated controller's ceiling: 4 KiB random reads by a client in C, the controller polled by
 * a second thread, no transport.
 *
 *   cc -O3 -std=gnu11 -Iext -Itests/native/emulator -o /tmp/emu-bench \
 *      benchmarks/native/emulator.c tests/native/emulator/fake_host.c ext/emulator/nvme_*.c \
 *      ext/pi/pi.c ext/pi/crc.c -lpthread
 *   /tmp/emu-bench [seconds per line, default 1]
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "fake_host.h"

#define DEPTH 1024u
#define BUFFERS 256u
#define REAP_MAX 64u

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

struct poller {
    struct emu_ctrl *ctrl;
    atomic_bool stop;
    uint64_t turns, idle;
};

static void *poller_main(void *arg)
{
    struct poller *poller = arg;
    while (!atomic_load_explicit(&poller->stop, memory_order_relaxed)) {
        poller->turns++;
        if (!emu_ctrl_poll(poller->ctrl)) {
            poller->idle++;
            __builtin_ia32_pause();
        }
    }
    return NULL;
}

/* Commands per second at that depth. Resubmits all that was reaped at once, with one doorbell each
 * way. */
static double run(struct fake_host *host, struct fh_queue *q, uint8_t *buffers, uint64_t blocks, unsigned depth,
                  double duration)
{
    uint64_t done = 0, seed = 88172645463325252ull;
    unsigned free_slots = depth;
    double begin = seconds(), now = begin;
    for (uint64_t round = 0; now - begin < duration || !done; round++) {
        unsigned submit = free_slots;
        for (unsigned i = 0; i < submit; i++) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            uint64_t lba = seed % blocks;
            struct nvme_sqe *sqe = &q->sq[q->tail];
            *sqe = (struct nvme_sqe){.opcode = IO_READ,
                                     .cid = q->next_cid++,
                                     .nsid = 1,
                                     .prp1 = fh_iova(host, buffers + (done + i) % BUFFERS * 4096),
                                     .cdw10 = (uint32_t)lba,
                                     .cdw11 = (uint32_t)(lba >> 32)};
            if (++q->tail == q->size)
                q->tail = 0;
        }
        if (submit)
            __atomic_store_n(&host->doorbells[2 * q->qid], q->tail, __ATOMIC_RELEASE);
        free_slots = 0;
        while (free_slots < REAP_MAX) {
            uint16_t status = __atomic_load_n(&q->cq[q->head].status, __ATOMIC_ACQUIRE);
            if ((status & 1) != q->phase)
                break;
            if (status >> 1) {
                fprintf(stderr, "status %#x\n", status >> 1);
                exit(1);
            }
            free_slots++;
            if (++q->head == q->size) {
                q->head = 0;
                q->phase ^= 1;
            }
        }
        if (free_slots)
            __atomic_store_n(&host->doorbells[2 * q->qid + 1], q->head, __ATOMIC_RELEASE);
        else
            __builtin_ia32_pause();
        done += free_slots;
        if (!(round & 63))
            now = seconds();
    }
    /* let outstanding commands finish, so that the next line starts clean */
    for (unsigned left = depth - free_slots; left;) {
        struct nvme_cqe cqe;
        left -= fh_reap(host, q, &cqe);
    }
    return (double)done / (now - begin);
}

static void measure(const char *name, enum emu_medium medium, double duration)
{
    const uint64_t nbytes = 256ull << 20;
    struct emu_config config = fh_config(medium, nbytes, 4096);
    struct fake_host host;
    fh_open(&host, &config, 64u << 20);
    struct fh_queue queue;
    if (fh_enable(&host, 32) != CSTS_RDY || fh_create_io(&host, &queue, 1, DEPTH)) {
        fprintf(stderr, "bring-up failed\n");
        exit(1);
    }
    uint8_t *buffers = fh_alloc(&host, BUFFERS * 4096);
    for (uint64_t lba = 0; medium == EMU_MEDIUM_RAM && lba < nbytes / 4096; lba++)
        fh_do(&host, &queue, fh_rw(&host, IO_WRITE, lba, 1, buffers, 4096), NULL);

    struct poller poller = {.ctrl = host.ctrl};
    pthread_t thread;
    if (pthread_create(&thread, NULL, poller_main, &poller))
        exit(1);
    static const unsigned depths[] = {1, 32, 128};
    for (unsigned i = 0; i < 3; i++) {
        double iops = run(&host, &queue, buffers, nbytes / 4096, depths[i], duration);
        printf("%-5s 4 KiB randread QD%-4u %10.0f IOPS  %7.0f ns each\n", name, depths[i], iops, 1e9 / iops);
        fflush(stdout);
    }
    atomic_store(&poller.stop, true);
    pthread_join(thread, NULL);
    fh_close(&host);
}

int main(int argc, char **argv)
{
    double duration = argc > 1 ? strtod(argv[1], NULL) : 1;
    measure("null", EMU_MEDIUM_NULL, duration);
    measure("ram", EMU_MEDIUM_RAM, duration);
    return 0;
}
