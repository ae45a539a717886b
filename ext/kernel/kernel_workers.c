/* Threads for what would block the event loop. They are created on demand and end with the link. */
#define _GNU_SOURCE
#include "kernel_link.h"

#include <signal.h>

static void announce(struct kernel_link *link)
{
    if (!link->announced) {
        link->announced = true;
        kl_announce(link);
    }
}

static void *work(void *argument)
{
    struct kernel_link *link = argument;
    pthread_mutex_lock(&link->lock);
    while (!link->ending) {
        struct kl_job *job = link->first;
        if (!job) {
            link->n_idle++;
            pthread_cond_wait(&link->work, &link->lock);
            link->n_idle--;
            continue;
        }
        link->first = job->next;
        if (!link->first)
            link->last = NULL;
        pthread_mutex_unlock(&link->lock);
        kl_execute(job);
        pthread_mutex_lock(&link->lock);
        job->next = link->finished;
        link->finished = job;
        announce(link);
    }
    pthread_mutex_unlock(&link->lock);
    return NULL;
}

/* The interpreter's threads handle signals. */
static bool start_worker(struct kernel_link *link)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int rc = pthread_create(&link->workers[link->n_workers], NULL, work, link);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc)
        return false;
    link->n_workers++;
    return true;
}

bool kl_give_to_worker(struct kernel_link *link, struct kl_job *job)
{
    bool taken = true;
    pthread_mutex_lock(&link->lock);
    job->next = NULL;
    if (link->last)
        link->last->next = job;
    else
        link->first = job;
    link->last = job;
    if (link->n_idle)
        pthread_cond_signal(&link->work);
    /* A sleeping one may not have woken yet for an earlier job. */
    if (link->n_workers < link->max_workers && (!link->n_idle || link->first != job) && !start_worker(link) &&
        !link->n_workers) {
        link->first = link->last = NULL; /* no worker exists for it, nor for earlier jobs */
        taken = false;
    }
    pthread_mutex_unlock(&link->lock);
    return taken;
}

struct kl_job *kl_take_finished(struct kernel_link *link)
{
    if (!link->announced)
        return NULL;
    pthread_mutex_lock(&link->lock);
    struct kl_job *job = link->finished;
    link->finished = NULL;
    link->announced = false;
    pthread_mutex_unlock(&link->lock);
    return job;
}

void kl_end_workers(struct kernel_link *link)
{
    pthread_mutex_lock(&link->lock);
    link->ending = true;
    pthread_cond_broadcast(&link->work);
    pthread_mutex_unlock(&link->lock);
    for (uint32_t i = 0; i < link->n_workers; i++)
        pthread_join(link->workers[i], NULL);
    link->n_workers = 0;
}
