#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "emulator/reactor_internal.h"

#define EVENTS_PER_TURN 64
#define TURNS_PER_LOOK 16         /* polls of all active controllers between two clock readings */
#define SOCKETS_EVERY_NS 20000    /* longest time that sockets wait while there is work */
#define LATEST_EVERY 4            /* endpoints polled between two polls of the one that had work last */
#define YIELD_AFTER_NS 10000      /* of spinning: the process that we wait for may need this processor */
#define YIELD_CHEAP_NS 200000     /* longest acceptable yield: a client's turn, not a time slice */
#define YIELD_REST 64             /* after a longer one there is none for that multiple of its duration, at least: */
#define YIELD_REST_MIN_NS 100000000

uint64_t emu_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void emu_set_state(struct emu_endpoint *endpoint, enum emu_state state)
{
    struct emu_reactor *reactor = endpoint->reactor;

    if (endpoint->state == state)
        return;
    if (endpoint->state == ACTIVE) {
        if (reactor->latest == endpoint)
            reactor->latest = NULL;
        for (unsigned i = 0; i < reactor->n_active; i++) {
            if (reactor->active[i] == endpoint) {
                reactor->active[i] = reactor->active[--reactor->n_active];
                break;
            }
        }
    } else if (state == ACTIVE) {
        reactor->active[reactor->n_active++] = endpoint;
    }
    reactor->n_napping += (unsigned)(state == NAPPING) - (unsigned)(endpoint->state == NAPPING);
    endpoint->state = state;
}

void emu_activate(struct emu_endpoint *endpoint)
{
    emu_set_state(endpoint, ACTIVE);
    endpoint->idle_since = 0;
    endpoint->reactor->next_deadline = 0;
}

int emu_watch_fd(struct emu_reactor *reactor, int fd, uint32_t events, struct emu_watch *watch)
{
    struct epoll_event event = {.events = events, .data.ptr = watch};

    return epoll_ctl(reactor->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : errno;
}

void emu_unwatch_fd(struct emu_reactor *reactor, int fd)
{
    epoll_ctl(reactor->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

static void handle_event(struct emu_reactor *reactor, struct emu_watch *watch, uint32_t events)
{
    uint64_t count;

    if (watch->source == CONTROL) {
        if (read(reactor->control_fd, &count, sizeof(count)) < 0)
            return; /* read before */
        return;
    }
    switch (watch->source) {
    case LISTEN:
        emu_accept_client(watch->endpoint);
        break;
    case CLIENT:
        emu_serve_client(watch->endpoint);
        break;
    case KICK:
        watch->endpoint->server->kicked = watch->endpoint->server->kick.fd >= 0;
        break;
    case UNMASK:
        vfu_guard_enter(&watch->endpoint->server->dma);
        vfu_irqs_unmask_intx(&watch->endpoint->server->irqs);
        vfu_guard_enter(NULL);
        break;
    case SOCKET_LISTEN:
        emu_tcp_accept(watch->endpoint->tcp, watch);
        break;
    case SOCKET_CONN:
        emu_tcp_event(watch, events);
        break;
    default:
        break;
    }
    emu_activate(watch->endpoint);
}

static void run_calls(struct emu_reactor *reactor)
{
    struct emu_call *call;

    pthread_mutex_lock(&reactor->lock);
    atomic_store(&reactor->called, false);
    while ((call = reactor->calls) != NULL) {
        reactor->calls = call->next;
        pthread_mutex_unlock(&reactor->lock);
        call->fn(call->arg);
        pthread_mutex_lock(&reactor->lock);
        call->done = true;
        pthread_cond_broadcast(&reactor->done);
    }
    pthread_mutex_unlock(&reactor->lock);
    reactor->next_deadline = 0;
}

/* Waits for events until `until` and handles them; returns at once if that time has passed. */
static void wait_events(struct emu_reactor *reactor, uint64_t until, uint64_t now)
{
    struct epoll_event events[EVENTS_PER_TURN];
    uint64_t left = until > now ? until - now : 0;
    int n;

    if (left == 0 || reactor->no_pwait2) {
        int milliseconds = until == UINT64_MAX ? -1 : left > 1000000000u ? 1000 : (int)((left + 999999) / 1000000);

        n = epoll_wait(reactor->epoll_fd, events, EVENTS_PER_TURN, milliseconds);
    } else {
        struct timespec timeout = {.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};

        n = (int)syscall(SYS_epoll_pwait2, reactor->epoll_fd, events, EVENTS_PER_TURN,
                         until == UINT64_MAX ? NULL : &timeout, NULL, (size_t)0);
        if (n < 0 && errno == ENOSYS)
            reactor->no_pwait2 = true;
    }
    for (int i = 0; i < n; i++)
        handle_event(reactor, events[i].data.ptr, events[i].events);
}

/* True when it had work. */
static bool poll_endpoint(struct emu_endpoint *endpoint)
{
    unsigned work;

    vfu_guard_enter(&endpoint->server->dma);
    work = emu_ctrl_poll(endpoint->server->ctrl);
    vfu_guard_enter(NULL);
    if (endpoint->server->dma.broken)
        emu_drop_client(endpoint, "a mapped file was truncated");
    if (endpoint->tcp != NULL)
        work += emu_tcp_poll(endpoint->tcp);
    if (work == 0)
        return false;
    endpoint->idle_since = 0;
    endpoint->dozing_since = 0;
    return true;
}

/* An active endpoint that has nothing to do goes to sleep, if the controller lets it. */
static void put_to_sleep(struct emu_endpoint *endpoint, uint64_t now)
{
    struct vfu_server *server = endpoint->server;
    uint64_t deadline, nap;
    bool armed;

    vfu_guard_enter(&server->dma);
    armed = emu_ctrl_arm(server->ctrl);
    vfu_guard_enter(NULL);
    if (!armed || server->dma.broken) {
        endpoint->idle_since = 0;
        return;
    }
    if (vfu_server_wakeable(server) && emu_ctrl_armed_fully(server->ctrl)) {
        emu_set_state(endpoint, ASLEEP);
        endpoint->dozing_since = 0;
        endpoint->wake_at = UINT64_MAX;
    } else {
        emu_set_state(endpoint, NAPPING);
        if (endpoint->dozing_since == 0)
            endpoint->dozing_since = now;
        nap = (now - endpoint->dozing_since) / 8;
        nap = nap < REACTOR_NAP_MIN_NS ? REACTOR_NAP_MIN_NS : nap > REACTOR_NAP_MAX_NS ? REACTOR_NAP_MAX_NS : nap;
        endpoint->wake_at = now + nap;
    }
    deadline = emu_ctrl_deadline(server->ctrl);
    if (endpoint->tcp != NULL) {
        uint64_t tcp_deadline = emu_tcp_deadline(endpoint->tcp);

        deadline = tcp_deadline < deadline ? tcp_deadline : deadline;
    }
    if (deadline < endpoint->wake_at)
        endpoint->wake_at = deadline;
    if (endpoint->wake_at < endpoint->reactor->next_deadline)
        endpoint->reactor->next_deadline = endpoint->wake_at;
}

static void check_socket_deadlines(struct emu_endpoint *endpoint, uint64_t now)
{
    uint64_t patience = vfu_server_deadline(endpoint->server);

    if (patience <= now) {
        emu_drop_client(endpoint, "the client did not finish a message within the time limit");
        emu_set_state(endpoint, ACTIVE);
        endpoint->idle_since = 0;
    } else if (patience < endpoint->reactor->next_deadline) {
        endpoint->reactor->next_deadline = patience;
    }
    if (endpoint->accept_at <= now)
        emu_accept_client(endpoint);
    if (endpoint->accept_at < endpoint->reactor->next_deadline)
        endpoint->reactor->next_deadline = endpoint->accept_at;
}

/* Checks all endpoints' deadlines: wakes those that are due, drops overdue clients, and computes
 * the next deadline. */
static void check_deadlines(struct emu_reactor *reactor, uint64_t now)
{
    bool nap_over = false;

    reactor->next_deadline = UINT64_MAX;
    for (unsigned i = 0; i < reactor->n_endpoints && !nap_over; i++)
        nap_over = reactor->endpoints[i]->state == NAPPING && reactor->endpoints[i]->wake_at <= now;
    for (unsigned i = 0; i < reactor->n_endpoints; i++) {
        struct emu_endpoint *endpoint = reactor->endpoints[i];
        enum emu_state state;

        check_socket_deadlines(endpoint, now);
        state = endpoint->state;
        if (state == ACTIVE)
            continue;
        /* The end of one nap ends all naps, because the thread is awake anyway. A nap that found
         * nothing is not followed by a spin. */
        if (endpoint->wake_at <= now || (state == NAPPING && nap_over)) {
            emu_set_state(endpoint, ACTIVE);
            endpoint->idle_since = 0;
            if (!poll_endpoint(endpoint) && state == NAPPING)
                put_to_sleep(endpoint, now);
        } else if (endpoint->wake_at < reactor->next_deadline) {
            reactor->next_deadline = endpoint->wake_at;
        }
    }
}

static void put_idle_to_sleep(struct emu_reactor *reactor, uint64_t now)
{
    const uint64_t spin = REACTOR_SPIN_NS * (uint64_t)reactor->n_active;

    for (unsigned i = reactor->n_active; i-- > 0;) { /* from the end: an endpoint that falls asleep leaves the array */
        struct emu_endpoint *endpoint = reactor->active[i];

        if (endpoint->idle_since == 0)
            endpoint->idle_since = now;
        else if (now - endpoint->idle_since >= spin)
            put_to_sleep(endpoint, now);
    }
}

/* One turn of all active endpoints. A client that just got a completion is likely to send again,
 * and may be waiting: so with many endpoints its own is also polled in between. */
static bool poll_active(struct emu_reactor *reactor)
{
    bool work = false;

    for (unsigned i = 0; i < reactor->n_active; i++) {
        struct emu_endpoint *endpoint = reactor->active[i];

        if (poll_endpoint(endpoint)) {
            work = true;
            reactor->latest = endpoint;
        }
        if ((i + 1) % LATEST_EVERY == 0 && reactor->latest != NULL)
            work |= poll_endpoint(reactor->latest);
    }
    return work;
}

/* Yields the processor as long as that is cheap. Beside a busy process a yield costs a time slice,
 * three orders of magnitude more than a command; the scheduler gives that process its share anyway.
 * Returns the earliest time of the next yield. */
static uint64_t yield(struct emu_reactor *reactor, uint64_t now)
{
    uint64_t cost, rest;

    sched_yield();
    reactor->stats.yields++;
    cost = emu_now() - now;
    if (cost <= YIELD_CHEAP_NS)
        return 0;
    reactor->stats.dear_yields++;
    rest = YIELD_REST * cost;
    return now + cost + (rest > YIELD_REST_MIN_NS ? rest : YIELD_REST_MIN_NS);
}

static void *run(void *arg)
{
    struct emu_reactor *reactor = arg;
    uint64_t sockets_at = 0, idle_from = 0, yield_at = 0;
    unsigned turns = 0;

    prctl(PR_SET_NAME, reactor->name);
    prctl(PR_SET_TIMERSLACK, 1000);
    while (!atomic_load_explicit(&reactor->stop, memory_order_relaxed)) {
        bool work;
        uint64_t now;

        if (atomic_load_explicit(&reactor->called, memory_order_acquire))
            run_calls(reactor);
        work = poll_active(reactor);
        if (work && ++turns < TURNS_PER_LOOK)
            continue;
        turns = 0;
        now = emu_now();
        if (now >= reactor->next_deadline)
            check_deadlines(reactor, now);
        put_idle_to_sleep(reactor, now);
        if (reactor->n_active == 0) {
            reactor->stats.sleeps++;
            reactor->stats.naps += reactor->n_napping > 0;
            wait_events(reactor, reactor->next_deadline, emu_now());
            idle_from = 0;
            continue;
        }
        if (now >= sockets_at) {
            wait_events(reactor, 0, now);
            sockets_at = now + SOCKETS_EVERY_NS;
        }
        if (work)
            idle_from = 0;
        else if (idle_from == 0)
            idle_from = now;
        else if (now - idle_from > YIELD_AFTER_NS) {
            if (now >= yield_at)
                yield_at = yield(reactor, now);
            idle_from = 0; /* then polls again for as long: a system call per poll would delay others */
        }
    }
    return NULL;
}

struct emu_reactor *emu_reactor_new(const char *name, char *err)
{
    struct emu_reactor *reactor = calloc(1, sizeof(*reactor));
    sigset_t all, previous;
    int error;

    if (reactor == NULL) {
        snprintf(err, 256, "out of memory");
        return NULL;
    }
    snprintf(reactor->name, sizeof(reactor->name), "%s", name);
    reactor->pid = getpid();
    reactor->control.source = CONTROL;
    pthread_mutex_init(&reactor->lock, NULL);
    pthread_cond_init(&reactor->done, NULL);
    reactor->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    reactor->control_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (reactor->epoll_fd < 0 || reactor->control_fd < 0)
        error = errno;
    else
        error = emu_watch_fd(reactor, reactor->control_fd, EPOLLIN, &reactor->control);
    if (error == 0) {
        /* Signals are handled by Python's threads; only SIGBUS must be delivered to the thread that
         * raises it. */
        sigfillset(&all);
        sigdelset(&all, SIGBUS);
        pthread_sigmask(SIG_SETMASK, &all, &previous);
        error = pthread_create(&reactor->thread, NULL, run, reactor);
        pthread_sigmask(SIG_SETMASK, &previous, NULL);
    }
    if (error == 0)
        return reactor;
    snprintf(err, 256, "cannot start the reactor: %s", strerror(error));
    if (reactor->epoll_fd >= 0)
        close(reactor->epoll_fd);
    if (reactor->control_fd >= 0)
        close(reactor->control_fd);
    pthread_mutex_destroy(&reactor->lock);
    pthread_cond_destroy(&reactor->done);
    free(reactor);
    return NULL;
}

static void ring(struct emu_reactor *reactor)
{
    static const uint64_t one = 1;

    if (write(reactor->control_fd, &one, sizeof(one)) < 0)
        return; /* full, so it is about to be read */
}

void emu_reactor_free(struct emu_reactor *reactor)
{
    if (reactor->pid == getpid()) {
        atomic_store(&reactor->stop, true);
        ring(reactor);
        pthread_join(reactor->thread, NULL);
        pthread_mutex_destroy(&reactor->lock);
        pthread_cond_destroy(&reactor->done);
    }
    close(reactor->epoll_fd);
    close(reactor->control_fd);
    free(reactor->endpoints);
    free(reactor->active);
    free(reactor);
}

void emu_reactor_call(struct emu_reactor *reactor, void (*fn)(void *arg), void *arg)
{
    struct emu_call call = {.fn = fn, .arg = arg}, **end;

    pthread_mutex_lock(&reactor->lock);
    for (end = &reactor->calls; *end != NULL; end = &(*end)->next)
        ;
    *end = &call;
    atomic_store_explicit(&reactor->called, true, memory_order_release);
    ring(reactor);
    while (!call.done)
        pthread_cond_wait(&reactor->done, &reactor->lock);
    pthread_mutex_unlock(&reactor->lock);
}
