/*
 * How other threads reach the reactor: requests (mail) and the helper thread that runs fdatasync,
 * so that the reactor never blocks on a disk. An eventfd wakes a sleeping reactor; a flag saves a
 * polling one the system call.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "nvme_ctrl.h"

#define MAIL_TIMEOUT_MAX (3600ull * 1000000000u)

int wake_init(struct wake *wake)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&wake->lock, NULL);
    pthread_cond_init(&wake->mail_done, &attr);
    pthread_cond_init(&wake->jobs_in, NULL);
    pthread_condattr_destroy(&attr);
    wake->mail_end = &wake->mail;
    wake->in_end = &wake->in;
    wake->out_end = &wake->out;
    wake->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return wake->fd < 0 ? -errno : 0;
}

static void job_free(struct job *job)
{
    for (unsigned i = 0; i < job->n_fds; i++)
        close(job->fds[i]);
    free(job);
}

static void jobs_free(struct job *job)
{
    while (job) {
        struct job *next = job->next;
        job_free(job);
        job = next;
    }
}

void wake_destroy(struct wake *wake)
{
    if (wake->fd < 0)
        return;
    if (wake->helper_runs) {
        pthread_mutex_lock(&wake->lock);
        wake->stop = true;
        pthread_cond_signal(&wake->jobs_in);
        pthread_mutex_unlock(&wake->lock);
        pthread_join(wake->helper, NULL);
    }
    jobs_free(wake->in);
    jobs_free(wake->out);
    close(wake->fd);
    pthread_mutex_destroy(&wake->lock);
    pthread_cond_destroy(&wake->mail_done);
    pthread_cond_destroy(&wake->jobs_in);
}

/* The descriptor before the flag: a thread that sees the flag and clears both leaves no descriptor
 * readable. With the lock held. */
static void ring(struct wake *wake)
{
    uint64_t one = 1;
    while (write(wake->fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
    atomic_store_explicit(&wake->pending, true, memory_order_release);
}

static void *helper_main(void *arg)
{
    struct wake *wake = arg;
    pthread_mutex_lock(&wake->lock);
    for (;;) {
        while (!wake->in && !wake->stop)
            pthread_cond_wait(&wake->jobs_in, &wake->lock);
        if (wake->stop)
            break;
        struct job *job = wake->in;
        wake->in = job->next;
        if (!wake->in)
            wake->in_end = &wake->in;
        pthread_mutex_unlock(&wake->lock);
        for (unsigned i = 0; i < job->n_fds; i++)
            while (fdatasync(job->fds[i])) {
                if (errno == EINTR)
                    continue;
                job->failed = true;
                break;
            }
        pthread_mutex_lock(&wake->lock);
        job->next = NULL;
        *wake->out_end = job;
        wake->out_end = &job->next;
        ring(wake);
    }
    pthread_mutex_unlock(&wake->lock);
    return NULL;
}

static int job_submit(struct wake *wake, struct job *job)
{
    pthread_mutex_lock(&wake->lock);
    int rc = 0;
    if (!wake->helper_runs)
        rc = pthread_create(&wake->helper, NULL, helper_main, wake);
    if (!rc) {
        wake->helper_runs = true;
        *wake->in_end = job;
        wake->in_end = &job->next;
        pthread_cond_signal(&wake->jobs_in);
    }
    pthread_mutex_unlock(&wake->lock);
    return rc;
}

static int job_add_ns(struct job *job, const struct ns *ns)
{
    if (!ns || ns->media.kind != EMU_MEDIUM_FILE)
        return 0;
    /* A descriptor of its own: the namespace may be removed before the helper gets there. */
    const int fds[] = {ns->media.fd, ns->meta.fd};
    for (unsigned i = 0; i < 2 && fds[i] >= 0; i++) {
        int fd = dup(fds[i]);
        if (fd < 0)
            return -errno;
        job->fds[job->n_fds++] = fd;
    }
    return 0;
}

/* SC_ASYNC: the command (or the shutdown) completes when all is on the disk. SC_SUCCESS: there is
 * nothing to wait for. */
uint16_t sync_start(struct emu_ctrl *ctrl, struct ns *ns, struct sq *sq, const struct nvme_sqe *sqe, bool shutdown)
{
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES && ctrl->config.extras.write_cache; i++)
        if (ctrl->namespaces[i] && (!ns || ctrl->namespaces[i] == ns))
            undo_flush(&ctrl->namespaces[i]->media);
    if (ns ? ns->media.kind != EMU_MEDIUM_FILE : !ctrl->has_cache)
        return SC_SUCCESS;
    struct job *job = calloc(1, sizeof(*job));
    if (!job)
        return SC_INTERNAL;
    int rc = 0;
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES && !rc; i++)
        if (!ns || ctrl->namespaces[i] == ns)
            rc = job_add_ns(job, ctrl->namespaces[i]);
    job->shutdown = shutdown;
    job->generation = ctrl->generation;
    if (sq) {
        job->sqid = sq->qid;
        job->incarnation = sq->incarnation;
        job->sqe = *sqe;
    }
    if (ctrl->effect) {
        job->has_effect = true;
        job->effect = *ctrl->effect;
    }
    if (!rc)
        rc = job_submit(&ctrl->wake, job);
    if (rc) {
        job_free(job);
        return SC_INTERNAL;
    }
    return SC_ASYNC;
}

static void job_done(struct emu_ctrl *ctrl, struct job *job)
{
    if (job->failed)
        ctrl->media_errors++;
    if (job->generation != ctrl->generation)
        return; /* the controller was reset: it has no waiter any more */
    if (job->shutdown) {
        regs_shutdown_done(ctrl);
        return;
    }
    struct sq *sq = &ctrl->sqs[job->sqid];
    if (ctrl->running && sq->created && sq->incarnation == job->incarnation)
        complete(ctrl, sq, &job->sqe, 0, job->failed ? SC_WRITE_FAULT : SC_SUCCESS,
                 job->has_effect ? &job->effect : NULL);
}

/* On the reactor: handles everything that other threads have queued. */
unsigned wake_drain(struct emu_ctrl *ctrl)
{
    struct wake *wake = &ctrl->wake;
    uint64_t count;
    unsigned work = 0;
    atomic_store_explicit(&wake->pending, false, memory_order_relaxed);
    while (read(wake->fd, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
    pthread_mutex_lock(&wake->lock);
    while (wake->mail) {
        struct mail *mail = wake->mail;
        wake->mail = mail->next;
        if (!wake->mail)
            wake->mail_end = &wake->mail;
        /* Under the lock: so its sender can't time out and release its memory meanwhile. */
        mail->run(ctrl, mail);
        mail->done = true;
        work++;
    }
    if (work)
        pthread_cond_broadcast(&wake->mail_done);
    struct job *out = wake->out;
    wake->out = NULL;
    wake->out_end = &wake->out;
    pthread_mutex_unlock(&wake->lock);
    while (out) {
        struct job *next = out->next;
        job_done(ctrl, out);
        job_free(out);
        out = next;
        work++;
    }
    return work;
}

int mail_send(struct emu_ctrl *ctrl, struct mail *mail, uint64_t timeout_ns)
{
    struct wake *wake = &ctrl->wake;
    uint64_t deadline = now_ns() + (timeout_ns < MAIL_TIMEOUT_MAX ? timeout_ns : MAIL_TIMEOUT_MAX);
    struct timespec until = {(time_t)(deadline / 1000000000u), (long)(deadline % 1000000000u)};
    mail->done = false;
    mail->next = NULL;
    pthread_mutex_lock(&wake->lock);
    *wake->mail_end = mail;
    wake->mail_end = &mail->next;
    ring(wake);
    int rc = 0;
    while (!mail->done && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&wake->mail_done, &wake->lock, &until);
    if (!mail->done) {
        struct mail **at = &wake->mail;
        while (*at != mail)
            at = &(*at)->next;
        *at = mail->next;
        if (wake->mail_end == &mail->next)
            wake->mail_end = at;
        mail->rc = -ETIMEDOUT;
    }
    pthread_mutex_unlock(&wake->lock);
    return mail->rc;
}
