/* The part of faults.h that changes or queries the controller itself: the reactor executes each
 * request. */
#include <errno.h>
#include <stdio.h>

#include "nvme_ctrl.h"

static void run_release(struct emu_ctrl *ctrl, struct mail *mail)
{
    (void)mail;
    held_release(ctrl);
}

int emu_fault_release(struct emu_ctrl *ctrl, uint64_t timeout_ns)
{
    struct mail mail = {.run = run_release};
    return mail_send(ctrl, &mail, timeout_ns);
}

static void run_fatal(struct emu_ctrl *ctrl, struct mail *mail)
{
    (void)mail;
    ctrl_fatal(ctrl, "requested by a test");
}

int emu_fault_fatal(struct emu_ctrl *ctrl, uint64_t timeout_ns)
{
    struct mail mail = {.run = run_fatal};
    return mail_send(ctrl, &mail, timeout_ns);
}

/* The controller returns in its power-on state. */
static void run_removed(struct emu_ctrl *ctrl, struct mail *mail)
{
    bool removed = mail->value;
    if (removed)
        ctrl->running = false;
    else if (ctrl->removed)
        emu_ctrl_reset(ctrl);
    ctrl->removed = removed;
}

int emu_fault_removed(struct emu_ctrl *ctrl, bool removed, uint64_t timeout_ns)
{
    struct mail mail = {.run = run_removed, .value = removed};
    return mail_send(ctrl, &mail, timeout_ns);
}

static void run_interrupt(struct emu_ctrl *ctrl, struct mail *mail)
{
    ctrl->counters.interrupts++;
    ctrl->host.interrupt(ctrl->host.opaque, (unsigned)mail->value);
}

int emu_fault_interrupt(struct emu_ctrl *ctrl, unsigned vector, uint64_t timeout_ns)
{
    if (vector >= ctrl->config.n_vectors)
        return -EINVAL;
    struct mail mail = {.run = run_interrupt, .value = vector};
    return mail_send(ctrl, &mail, timeout_ns);
}

static void run_temperature(struct emu_ctrl *ctrl, struct mail *mail)
{
    ctrl->temperature = (uint16_t)mail->value;
    smart_check(ctrl);
}

int emu_fault_temperature(struct emu_ctrl *ctrl, uint16_t kelvin, uint64_t timeout_ns)
{
    struct mail mail = {.run = run_temperature, .value = kelvin};
    return mail_send(ctrl, &mail, timeout_ns);
}

static void run_ns_add(struct emu_ctrl *ctrl, struct mail *mail)
{
    if (ns_allocated(ctrl, mail->nsid)) {
        snprintf(mail->err, 256, "namespace %u already exists", mail->nsid);
        mail->rc = -EEXIST;
        return;
    }
    struct ns *ns = ns_new(ctrl, mail->nsid, &mail->ns, mail->err);
    if (!ns) {
        mail->rc = -EINVAL;
        return;
    }
    ctrl->namespaces[mail->nsid - 1] = ns;
    ns_changed(ctrl, mail->nsid, mail->notice);
}

int emu_ns_add(struct emu_ctrl *ctrl, uint32_t nsid, const struct emu_ns_config *config, bool notice, char *err,
               uint64_t timeout_ns)
{
    err[0] = 0;
    if (nsid - 1 >= EMU_MAX_NAMESPACES) {
        snprintf(err, 256, "namespace %u: an nsid is 1 to %d", nsid, EMU_MAX_NAMESPACES);
        return -EINVAL;
    }
    struct mail mail = {.run = run_ns_add, .nsid = nsid, .ns = *config, .notice = notice, .err = err};
    int rc = mail_send(ctrl, &mail, timeout_ns);
    if (rc == -ETIMEDOUT)
        snprintf(err, 256, "namespace %u: the reactor did not answer", nsid);
    return rc;
}

static void run_ns_remove(struct emu_ctrl *ctrl, struct mail *mail)
{
    struct ns *ns = ctrl->namespaces[mail->nsid - 1];
    if (!ns) {
        mail->rc = -ENOENT;
        return;
    }
    ctrl->namespaces[mail->nsid - 1] = NULL;
    ctrl->incarnations[mail->nsid - 1]++;
    ns_free(ns);
    ns_changed(ctrl, mail->nsid, mail->notice);
}

int emu_ns_remove(struct emu_ctrl *ctrl, uint32_t nsid, bool notice, uint64_t timeout_ns)
{
    if (nsid - 1 >= EMU_MAX_NAMESPACES)
        return -EINVAL;
    struct mail mail = {.run = run_ns_remove, .nsid = nsid, .notice = notice};
    return mail_send(ctrl, &mail, timeout_ns);
}

static void run_ns_resize(struct emu_ctrl *ctrl, struct mail *mail)
{
    struct ns *ns = ctrl->namespaces[mail->nsid - 1];
    mail->rc = ns ? ns_resize(ns, mail->value) : -ENOENT;
    if (!mail->rc)
        ns_changed(ctrl, mail->nsid, mail->notice);
}

int emu_ns_resize(struct emu_ctrl *ctrl, uint32_t nsid, uint64_t nbytes, bool notice, uint64_t timeout_ns)
{
    if (nsid - 1 >= EMU_MAX_NAMESPACES)
        return -EINVAL;
    struct mail mail = {.run = run_ns_resize, .nsid = nsid, .value = nbytes, .notice = notice};
    return mail_send(ctrl, &mail, timeout_ns);
}

/* The power fails and comes back only with emu_fault_removed(false). */
static void run_power_loss(struct emu_ctrl *ctrl, struct mail *mail)
{
    struct outage outage = {.tear = mail->notice, .seed = mail->value};
    outage_strike(ctrl, &outage);
    ctrl->running = false;
    ctrl->removed = true;
    ctrl->unsafe_shutdowns++;
}

int emu_fault_power_loss(struct emu_ctrl *ctrl, bool tear, uint64_t seed, uint64_t timeout_ns)
{
    struct mail mail = {.run = run_power_loss, .notice = tear, .value = seed};
    return mail_send(ctrl, &mail, timeout_ns);
}

static void run_ana(struct emu_ctrl *ctrl, struct mail *mail)
{
    mail->rc = ana_set(ctrl, mail->nsid, (uint8_t)mail->value);
}

int emu_ana_state(struct emu_ctrl *ctrl, uint32_t group, uint8_t state, uint64_t timeout_ns)
{
    struct mail mail = {.run = run_ana, .nsid = group, .value = state};
    return mail_send(ctrl, &mail, timeout_ns);
}

static void run_zone(struct emu_ctrl *ctrl, struct mail *mail)
{
    mail->rc = zones_change(ctrl, mail->nsid, mail->value >> 8, (uint8_t)mail->value);
}

int emu_zone_state(struct emu_ctrl *ctrl, uint32_t nsid, uint64_t index, uint8_t state, uint64_t timeout_ns)
{
    struct mail mail = {.run = run_zone, .nsid = nsid, .value = index << 8 | state};
    return mail_send(ctrl, &mail, timeout_ns);
}

static void run_use_host_memory(struct emu_ctrl *ctrl, struct mail *mail)
{
    (void)mail;
    hmb_use_all(ctrl);
}

int emu_use_host_memory(struct emu_ctrl *ctrl, uint64_t timeout_ns)
{
    struct mail mail = {.run = run_use_host_memory};
    return mail_send(ctrl, &mail, timeout_ns);
}

static void run_sanitize_fails(struct emu_ctrl *ctrl, struct mail *mail)
{
    (void)mail;
    ctrl->extras.sanitize.fails = true;
}

int emu_fault_sanitize(struct emu_ctrl *ctrl, uint64_t timeout_ns)
{
    struct mail mail = {.run = run_sanitize_fails};
    return mail_send(ctrl, &mail, timeout_ns);
}

static void run_ns_identity(struct emu_ctrl *ctrl, struct mail *mail)
{
    struct ns *ns = ctrl->namespaces[mail->nsid - 1];
    if (!ns) {
        mail->rc = -ENOENT;
        return;
    }
    if (mail->nguid)
        memcpy(ns->nguid, mail->nguid, sizeof(ns->nguid));
    if (mail->eui64)
        memcpy(ns->eui64, mail->eui64, sizeof(ns->eui64));
    if (mail->uuid)
        memcpy(ns->uuid, mail->uuid, sizeof(ns->uuid));
    ns_changed(ctrl, mail->nsid, mail->notice);
}

int emu_ns_identity(struct emu_ctrl *ctrl, uint32_t nsid, const uint8_t *nguid, const uint8_t *eui64,
                    const uint8_t *uuid, bool notice, uint64_t timeout_ns)
{
    if (nsid - 1 >= EMU_MAX_NAMESPACES)
        return -EINVAL;
    struct mail mail = {
        .run = run_ns_identity, .nsid = nsid, .nguid = nguid, .eui64 = eui64, .uuid = uuid, .notice = notice};
    return mail_send(ctrl, &mail, timeout_ns);
}

static void run_outstanding(struct emu_ctrl *ctrl, struct mail *mail)
{
    uint32_t n = 0, ranges = 0;
    for (struct held *held = ctrl->held.next; held != &ctrl->held && n < mail->max; held = held->next) {
        if (held->n_ranges > mail->max_ranges - ranges)
            break;
        struct emu_outstanding *out = &mail->out[n++];
        *out = (struct emu_outstanding){
            .sqid = held->sq->qid,
            .cid = held->sqe.cid,
            .opcode = held->sqe.opcode,
            .executed = held->executed,
            .deadline_ns = held->deadline,
            .n_ranges = held->n_ranges,
            .first_range = ranges,
        };
        memcpy(out->sqe, &held->sqe, sizeof(out->sqe));
        memcpy(mail->ranges + ranges, held->ranges, held->n_ranges * sizeof(held->ranges[0]));
        ranges += held->n_ranges;
    }
    mail->n_ranges = ranges;
    mail->rc = (int)n;
}

int emu_outstanding(struct emu_ctrl *ctrl, struct emu_outstanding *out, uint32_t max, struct emu_dma_range *ranges,
                    uint32_t max_ranges, uint32_t *n_ranges, uint64_t timeout_ns)
{
    struct mail mail = {.run = run_outstanding, .out = out, .max = max, .ranges = ranges, .max_ranges = max_ranges};
    int rc = mail_send(ctrl, &mail, timeout_ns);
    *n_ranges = mail.n_ranges;
    return rc;
}

void emu_counters(const struct emu_ctrl *ctrl, struct emu_counters *out)
{
    const uint64_t *from = (const uint64_t *)&ctrl->counters;
    uint64_t *to = (uint64_t *)out;
    _Static_assert(sizeof(*out) % sizeof(uint64_t) == 0, "counters are 64 bits wide");
    for (size_t i = 0; i < sizeof(*out) / sizeof(uint64_t); i++)
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

uint32_t emu_csts(const struct emu_ctrl *ctrl)
{
    return __atomic_load_n(&ctrl->csts, __ATOMIC_RELAXED);
}
