/*
 * The host's side of NVMe/TCP against a hostile controller, after Connect: a read of 512 bytes and
 * of 64 KiB, a write of 64 KiB and a Flush are out. The first byte says which digests are in use
 * (bits 0 and 1) and in pieces of how many bytes the rest, what the controller sends, arrives.
 */
#include <stdlib.h>
#include <sys/socket.h>

#include "tcp/link.h"

#define ENTRIES 16u
#define TRACKERS 14u
#define LONG (64u << 10)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void post(struct nvq *q, uint8_t opcode, void *memory, uint32_t nbytes)
{
    const int slot = nvq_take(q);
    if (slot < 0)
        abort();
    struct nvq_tracker *t = &q->trackers[slot];
    memset(&t->sqe, 0, sizeof t->sqe);
    t->sqe.opcode = opcode;
    t->sqe.nsid = 1;
    t->sqe.prp1 = (uint64_t)(uintptr_t)memory;
    t->flags = !nbytes ? 0 : opcode == 1 ? NVQ_FROM_HOST : NVQ_TO_HOST;
    t->tag = 0;
    t->data_nbytes = nbytes;
    t->data_offset = NVQ_NO_OFFSET;
    nvq_post(q, (unsigned)slot);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char sent[1 << 16];
    struct nvq_header layout;
    struct tcp_link link;
    struct nvq q;
    int pair[2];
    memset(&layout, 0, sizeof layout);
    const uint64_t nbytes = nvq_layout(&layout, ENTRIES, TRACKERS, 16);
    uint8_t *memory = aligned_alloc(NVQ_PAGE, nbytes);
    uint8_t *small = malloc(512), *large = malloc(LONG),
            *written = calloc(1, LONG); /* of their exact sizes, for ASan */
    if (!memory || !small || !large || !written || link_init(&link))
        abort();
    memset(memory, 0, nbytes);
    layout.qid = 1;
    memcpy(memory, &layout, sizeof layout);
    if (nvq_open(&q, memory, (uint64_t)(uintptr_t)memory) ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
        abort();
    nvq_reset(&q);
    link.q = &q;
    q.link = &link;
    q.transport = &tcp_transport;
    const uint8_t how = size ? data[0] : 0;
    const struct tcp_limits limits = {
        .in_capsule = 0, .max_h2c = 8192, .alignment = 4, .header_digest = how & 1, .data_digest = how & 2};
    if (link_attach(&link, pair[0], &limits))
        abort();
    post(&q, 2, small, 512);
    post(&q, 2, large, LONG);
    post(&q, 1, written, LONG);
    post(&q, 0, NULL, 0);
    (void)nvq_ring_sq(&q);
    size_t piece = (size_t)1 << (how >> 2) % 16;
    if (piece < size / 128)
        piece = size / 128; /* so that no input takes long */
    for (size_t at = 1; at < size && !link.broken; at += piece) {
        (void)send(pair[1], data + at, size - at < piece ? size - at : piece, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)nvq_reap(&q, ENTRIES);
        for (; q.n_done; q.n_done--)
            nvq_put(&q, q.done_slots[q.n_done - 1]);
        link_flush(&link);
        while (recv(pair[1], sent, sizeof sent, MSG_DONTWAIT) > 0)
            ;
    }
    link_detach(&link);
    nvq_close(&q);
    link_free(&link);
    close(pair[0]);
    close(pair[1]);
    free(memory);
    free(small);
    free(large);
    free(written);
    return 0;
}
