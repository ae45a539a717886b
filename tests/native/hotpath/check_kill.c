/*
 * A driver killed at every instruction. Not part of any extension;
 * tests/unit/test_adopt_instructions.py builds and runs it.
 *
 *   check_kill SEED INSTRUCTIONS register|shadow
 *
 * A child drives a queue pair in shared memory, one instruction at a time (ptrace). After each that
 * changed something, the parent does what a successor would do, on a copy: every command must be
 * found in exactly one place, be executed once or never, and as was found; no doorbell may be
 * written twice with the same value; the ring must go on. Now and then the child is killed for
 * good, and the next one goes on as a successor, so that the way of taking over is itself cut at
 * every instruction.
 *
 * The controller is a model. The death does not affect it: its actions are atomic for the child
 * (`outside`).
 */
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "hotpath/adopt.h"

#define ENTRIES 4u
#define TRACKERS 3u
#define QUEUE_BYTES (5u * NVQ_PAGE)
#define TAGS 65536u
#define WINDOW 16u /* tags that may still be somewhere */

enum fate {
    UNUSED = 0,
    STARTED = 1, /* being sent, in flight, or completed and not yet delivered */
    GIVEN = 2,   /* its caller knows the result */
    UNSENT = 3,  /* a successor has reported that it was never sent */
};

struct world {
    uint8_t queue[QUEUE_BYTES];
    volatile uint32_t shadow[2], event_index[2]; /* submission, completion */
    /* The controller. */
    uint32_t registers[2], sq_head, cq_tail, cq_head_seen;
    uint16_t phase;
    bool asleep;
    uint32_t same_value[2]; /* doorbell writes with an old value */
    uint8_t executed[TAGS];
    /* The callers' knowledge. Written by the driver, separately from the queue. */
    uint8_t fate[TAGS];
    volatile uint32_t next_tag, starting, giving;
    volatile bool outside;
};

static bool with_shadow;
static uint32_t chance_state;

static uint32_t chance(uint32_t n)
{
    chance_state = chance_state * 1664525u + 1013904223u;
    return (chance_state >> 16) % n;
}

static void die(const char *what, uint32_t detail)
{
    fprintf(stderr, "%s (%u)\n", what, detail);
    exit(1);
}

/* -- the controller */

static void controller_run(struct world *w, uint32_t limit)
{
    struct nvq_header *h = (struct nvq_header *)w->queue;
    const struct nvq_sqe *sq = (const struct nvq_sqe *)(w->queue + h->sq_offset);
    struct nvq_cqe *cq = (struct nvq_cqe *)(w->queue + h->cq_offset);
    if (w->asleep)
        return;
    const uint32_t tail = with_shadow ? w->shadow[0] : w->registers[0];
    w->cq_head_seen = with_shadow ? w->shadow[1] : w->registers[1];
    while (limit-- && w->sq_head != tail && (w->cq_tail + 1) % ENTRIES != w->cq_head_seen) {
        const struct nvq_sqe *sqe = &sq[w->sq_head];
        w->sq_head = (w->sq_head + 1) % ENTRIES;
        if (sqe->cdw10)
            w->executed[sqe->cdw10 % TAGS]++;
        struct nvq_cqe *cqe = &cq[w->cq_tail];
        *cqe = (struct nvq_cqe){
            .dw0 = sqe->cdw10, .sqhd = (uint16_t)w->sq_head, .sqid = h->qid, .cid = sqe->cid, .status = w->phase};
        w->cq_tail = (w->cq_tail + 1) % ENTRIES;
        w->phase ^= w->cq_tail == 0;
    }
    if (with_shadow && (w->sq_head == tail || (w->cq_tail + 1) % ENTRIES == w->cq_head_seen)) {
        w->event_index[0] = tail;
        w->event_index[1] = w->cq_head_seen;
        w->asleep = true; /* only a register write wakes it */
    }
}

static void doorbell(struct world *w, unsigned which, uint32_t value)
{
    w->same_value[which] += w->registers[which] == value;
    w->registers[which] = value;
    w->asleep = false;
}

/* -- the driver, as in queue_pair.pxi and adopt.pxi */

static void open_queue(struct nvq *q, struct world *w)
{
    if (nvq_open(q, w->queue, 0))
        die("out of memory", 0);
    if (with_shadow) {
        q->sq_shadow = &w->shadow[0];
        q->cq_shadow = &w->shadow[1];
        q->sq_eventidx = &w->event_index[0];
        q->cq_eventidx = &w->event_index[1];
    }
}

static void wrote(struct world *w, unsigned which, uint32_t value)
{
    w->outside = true;
    doorbell(w, which, value);
    w->outside = false;
}

static void ring_sq(struct nvq *q, struct world *w)
{
    if (nvq_ring_sq(q)) {
        wrote(w, 0, q->sq_tail);
        nvq_rang_sq(q);
    }
}

static void ring_cq(struct nvq *q, struct world *w)
{
    if (nvq_ring_cq(q)) {
        wrote(w, 1, q->cq_head);
        nvq_rang_cq(q);
    }
}

static bool send(struct nvq *q, struct world *w)
{
    const int slot = nvq_take(q);
    if (slot < 0)
        return false;
    struct nvq_tracker *t = &q->trackers[slot];
    const uint32_t tag = w->next_tag;
    w->starting = tag;
    w->fate[tag] = STARTED;
    w->next_tag = tag + 1;
    memset(&t->sqe, 0, sizeof t->sqe);
    t->sqe.cdw10 = tag;
    t->flags = 0;
    t->tag = tag;
    t->data_offset = NVQ_NO_OFFSET;
    t->data_nbytes = 0;
    nvq_post(q, (unsigned)slot);
    w->starting = 0;
    return true;
}

static void give(struct nvq *q, struct world *w, unsigned slot)
{
    const struct nvq_tracker *t = &q->trackers[slot];
    const uint32_t tag = (uint32_t)t->tag;
    if (t->flags & NVQ_INTERNAL) {
        nvq_retire(q, slot);
        return;
    }
    if (t->dw0 != tag)
        die("a command got another's completion", tag);
    w->giving = tag;
    nvq_retire(q, slot);
    w->fate[tag] = GIVEN;
    w->giving = 0;
}

static void reap(struct nvq *q, struct world *w, unsigned limit)
{
    nvq_reap(q, limit);
    if (q->strays.n)
        die("a completion for nobody", q->strays.cid);
    for (uint32_t i = 0; i < q->n_done; i++)
        give(q, w, q->done_slots[i]);
    q->n_done = 0;
}

static void take_over(struct nvq *q, struct world *w)
{
    const struct nvq_measure measure = {.pool_nbytes = UINT64_MAX, .max_transfer = NVQ_PAGE, .sums = true};
    struct nvq_found found;
    char error[NVQ_ERROR_BYTES];
    open_queue(q, w);
    if (nvq_check_header(q->header, QUEUE_BYTES, 1, error) || nvq_inspect(q, &measure, &found, error))
        die(error, 0);
    const uint64_t submitted = atomic_load(&q->header->submitted);
    for (uint32_t i = 0; i < TRACKERS; i++) {
        const struct nvq_tracker *t = &q->trackers[i];
        if (t->state == NVQ_ARMED && t->position >= submitted && !(t->flags & NVQ_INTERNAL))
            w->fate[t->tag] = UNSENT;
    }
    nvq_adopt(q, &measure, &found);
    for (uint32_t i = 0; i < TRACKERS; i++)
        if (q->trackers[i].state == NVQ_DONE)
            give(q, w, i);
    if (found.uncertain) {
        const int slot = nvq_take_reserved(q);
        if (slot >= 0) {
            struct nvq_tracker *t = &q->trackers[slot];
            memset(&t->sqe, 0, sizeof t->sqe);
            t->flags = NVQ_INTERNAL;
            t->tag = 0;
            t->data_offset = NVQ_NO_OFFSET;
            nvq_post(q, (unsigned)slot);
        }
    }
    if ((found.uncertain || found.unrung) && nvq_ring_sq_surely(q)) {
        wrote(w, 0, q->sq_tail);
        nvq_rang_sq(q);
    }
    if (nvq_cq_must_ring(q) && nvq_ring_cq_surely(q)) {
        wrote(w, 1, q->cq_head);
        nvq_rang_cq(q);
    }
    reap(q, w, TRACKERS);
    ring_cq(q, w);
}

static void drive(struct world *w, bool successor)
{
    struct nvq q;
    if (successor)
        take_over(&q, w);
    else
        open_queue(&q, w), nvq_reset(&q);
    for (;;) {
        for (uint32_t n = chance(3); n--;)
            send(&q, w);
        ring_sq(&q, w);
        w->outside = true;
        controller_run(w, chance(4));
        w->outside = false;
        reap(&q, w, 1 + chance(2));
        if (chance(2))
            ring_cq(&q, w);
    }
}

/* -- what is checked after each instruction */

/* Is each command in a plausible place? Checks the copy as the dead process left it. */
static void check_trackers(const struct world *w)
{
    const struct nvq_header *h = (const struct nvq_header *)w->queue;
    const struct nvq_tracker *trackers = (const struct nvq_tracker *)(w->queue + h->trackers_offset);
    uint32_t found[WINDOW] = {0};
    for (uint32_t i = 0; i < TRACKERS; i++) {
        const struct nvq_tracker *t = &trackers[i];
        if (t->state == NVQ_FREE || t->flags & NVQ_INTERNAL)
            continue;
        if (t->tag == 0 || t->tag >= w->next_tag || t->tag + WINDOW <= w->next_tag)
            die("a tracker is about an old command", (uint32_t)t->tag);
        found[t->tag % WINDOW]++;
        const bool sent = t->state == NVQ_DONE || t->position < h->submitted;
        if (!sent && w->executed[t->tag])
            die("a command that was never sent was executed", (uint32_t)t->tag);
        if (t->state == NVQ_DONE && w->executed[t->tag] != 1)
            die("a result of a command that wasn't executed", (uint32_t)t->tag);
        if (w->fate[t->tag] == UNSENT && sent)
            die("a command reported as never sent is out", (uint32_t)t->tag);
        if (w->fate[t->tag] == GIVEN)
            die("a command whose caller has the result is still there", (uint32_t)t->tag);
    }
    for (uint32_t tag = w->next_tag > WINDOW ? w->next_tag - WINDOW + 1 : 1; tag < w->next_tag; tag++) {
        const bool may_be_nowhere = tag == w->starting || tag == w->giving || w->fate[tag] != STARTED;
        if (found[tag % WINDOW] > 1 || (!found[tag % WINDOW] && !may_be_nowhere))
            die("a command is in so many places", tag << 8 | found[tag % WINDOW]);
    }
}

/* A successor continues with a copy: every command ends, and the ring still works. */
static void check_successor(const struct world *left, struct world *w)
{
    struct nvq q;
    memcpy(w, left, sizeof *w);
    w->starting = w->giving = 0;
    take_over(&q, w);
    uint32_t idle = 0;
    for (uint32_t turn = 0; turn < 40 || q.n_armed; turn++) {
        if (turn > 200)
            die("commands never completed", q.n_armed);
        while (turn < 40 && send(&q, w))
            ;
        ring_sq(&q, w);
        controller_run(w, 3);
        idle = nvq_pending(&q) ? 0 : idle + 1;
        if (idle > 3 && q.n_armed)
            die("the ring stands still", turn);
        reap(&q, w, TRACKERS);
        ring_cq(&q, w);
    }
    /* With a shadow the register only wakes. Else: a full ring leaves no new value to write
     * (nvq_take_reserved, nvq_cq_must_ring). */
    const struct nvq_header *h = (const struct nvq_header *)left->queue;
    if (w->same_value[0] > left->same_value[0] && !with_shadow && h->submitted - h->reaped < ENTRIES - 1)
        die("the submission doorbell was written twice with one value", w->registers[0]);
    if (w->same_value[1] > left->same_value[1] && !with_shadow && h->reaped - h->cq_rung < ENTRIES - 1)
        die("the completion doorbell was written twice with one value", w->registers[1]);
    for (uint32_t tag = left->next_tag > WINDOW ? left->next_tag - WINDOW + 1 : 1; tag < w->next_tag; tag++) {
        const bool nobody_knows = tag == left->starting || tag == left->giving;
        if (w->executed[tag] > 1 || (w->fate[tag] == UNSENT && w->executed[tag]))
            die("a command was executed so often", tag << 8 | w->executed[tag]);
        if (w->fate[tag] == GIVEN ? w->executed[tag] != 1 : w->fate[tag] != UNSENT && !nobody_knows)
            die("a command has no end", tag << 8 | w->fate[tag]);
    }
    nvq_close(&q);
}

/* The caller died with the driver, so a command that is nowhere is not reported. */
static void bury(struct world *w)
{
    const struct nvq_header *h = (const struct nvq_header *)w->queue;
    const struct nvq_tracker *trackers = (const struct nvq_tracker *)(w->queue + h->trackers_offset);
    bool starting = false, giving = false;
    for (uint32_t i = 0; i < TRACKERS; i++) {
        starting |= trackers[i].state != NVQ_FREE && trackers[i].tag == w->starting;
        giving |= trackers[i].state != NVQ_FREE && trackers[i].tag == w->giving;
    }
    if (w->starting && !starting)
        w->fate[w->starting] = UNSENT;
    if (w->giving && !giving)
        w->fate[w->giving] = GIVEN;
    w->starting = w->giving = 0;
}

static pid_t start(struct world *w, bool successor)
{
    const pid_t pid = fork();
    if (pid == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        drive(w, successor);
    }
    int status;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
        exit(77); /* this machine doesn't allow tracing */
    return pid;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    chance_state = (uint32_t)atoi(argv[1]);
    with_shadow = !strcmp(argv[3], "shadow");
    struct world *w = mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    static struct world before, copy;
    struct nvq_header *h = (struct nvq_header *)w->queue;
    struct nvq q;
    if (w == MAP_FAILED || nvq_layout(h, ENTRIES, TRACKERS, 1) > QUEUE_BYTES)
        return 2;
    h->magic = NVQ_MAGIC;
    h->version = NVQ_LAYOUT_VERSION;
    h->qid = 1;
    h->n_reserved = 1;
    w->phase = 1;
    w->next_tag = 1;
    open_queue(&q, w);
    nvq_reset(&q);
    h->sums = NVQ_SUMS;
    nvq_close(&q);
    long steps = atol(argv[2]), deaths = 0, states = 0, left = 200;
    pid_t pid = start(w, false);
    while (steps-- && w->next_tag < TAGS - 512) {
        int status;
        if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) || waitpid(pid, &status, 0) != pid)
            return 77;
        if (!WIFSTOPPED(status))
            return 1; /* it has said why */
        if (w->outside)
            continue;
        const uint32_t from = w->next_tag > WINDOW ? w->next_tag - WINDOW : 0;
        const bool changed = memcmp(before.queue, w->queue, offsetof(struct world, executed)) ||
                             memcmp(before.fate + from, w->fate + from, 2 * WINDOW) || before.giving != w->giving ||
                             before.starting != w->starting;
        if (changed) {
            memcpy(&before, w, sizeof before);
            check_trackers(w);
            check_successor(w, &copy);
            states++;
        }
        if (--left <= 0) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            bury(w);
            chance_state += 7;
            pid = start(w, true);
            deaths++;
            left = 1 + chance(chance(4) ? 4000 : 300);
        }
    }
    kill(pid, SIGKILL);
    printf("%ld states, %ld deaths, %u commands\n", states, deaths, w->next_tag - 1);
    return 0;
}
