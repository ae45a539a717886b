#define _GNU_SOURCE
#include "emulator/vfu_irq.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void vfu_irqs_init(struct vfu_irqs *irqs, struct vfu_pci *pci, unsigned n_vectors)
{
    static const struct vfu_vector none = {.fd = -1};

    irqs->pci = pci;
    irqs->n_vectors = n_vectors;
    irqs->n_assigned = 0;
    for (unsigned i = 0; i < EMU_MAX_VECTORS; i++)
        irqs->msix[i] = none;
    irqs->intx = irqs->error = irqs->request = none;
    irqs->intx_unmask = (struct vfu_watch){.fd = -1, .epoll_fd = -1};
}

static void assign(struct vfu_vector *vector, int fd)
{
    if (vector->fd >= 0)
        close(vector->fd);
    vector->fd = fd;
    vector->blocking = fd >= 0 && !(fcntl(fd, F_GETFL) & O_NONBLOCK);
}

void vfu_irqs_reset(struct vfu_irqs *irqs)
{
    for (unsigned i = 0; i < EMU_MAX_VECTORS; i++)
        assign(&irqs->msix[i], -1);
    assign(&irqs->intx, -1);
    assign(&irqs->error, -1);
    assign(&irqs->request, -1);
    for (unsigned i = 0; i < EMU_MAX_VECTORS; i++)
        irqs->msix[i].masked = irqs->msix[i].pending = false;
    irqs->intx.masked = false;
    irqs->n_assigned = 0;
    vfu_watch_set(&irqs->intx_unmask, -1);
}

unsigned vfu_irqs_count(const struct vfu_irqs *irqs, uint32_t index, uint32_t *flags)
{
    switch (index) {
    case VFIO_PCI_INTX_IRQ_INDEX:
        *flags = VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED;
        return 1;
    case VFIO_PCI_MSIX_IRQ_INDEX:
        *flags = VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE;
        return irqs->n_vectors;
    case VFIO_PCI_ERR_IRQ_INDEX:
    case VFIO_PCI_REQ_IRQ_INDEX:
        *flags = VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE;
        return 1;
    default: /* no MSI */
        *flags = 0;
        return 0;
    }
}

static void signal_fd(struct vfu_vector *vector)
{
    static const uint64_t one = 1;
    struct pollfd writable = {.fd = vector->fd, .events = POLLOUT};

    /* A client that filled its own eventfd has an interrupt pending anyway, so do not block. */
    if (vector->blocking && poll(&writable, 1, 0) != 1)
        return;
    if (write(vector->fd, &one, sizeof(one)) < 0)
        return; /* EAGAIN: as above. Other errors can't be reported. */
}

static void raise_msix(struct vfu_vector *vector)
{
    /* Without an eventfd it is like a masked vector: signalled once there is one. */
    if (vector->masked || vector->fd < 0) {
        vector->pending = true;
        return;
    }
    vector->pending = false;
    signal_fd(vector);
}

static bool uses_msix(const struct vfu_irqs *irqs)
{
    return irqs->n_assigned > 0 || vfu_pci_msix_enabled(irqs->pci);
}

/* INTx is a level: it is signalled when it is asserted and not masked, and then masks itself. An
 * interrupt that was served meanwhile is not signalled. */
void vfu_irqs_update_pin(struct vfu_irqs *irqs)
{
    struct vfu_vector *intx = &irqs->intx;
    bool asserted = !uses_msix(irqs) && emu_ctrl_pin(irqs->ctrl);

    vfu_pci_set_intx_status(irqs->pci, asserted);
    if (!asserted || intx->masked || intx->fd < 0 || vfu_pci_intx_disabled(irqs->pci))
        return;
    intx->masked = true;
    signal_fd(intx);
}

void vfu_irqs_raise(struct vfu_irqs *irqs, unsigned vector)
{
    if (!uses_msix(irqs))
        vfu_irqs_update_pin(irqs);
    else if (vector < irqs->n_vectors)
        raise_msix(&irqs->msix[vector]);
}

void vfu_irqs_unmask_intx(struct vfu_irqs *irqs)
{
    irqs->intx.masked = false;
    vfu_irqs_update_pin(irqs);
}

void vfu_irqs_pending(const struct vfu_irqs *irqs, uint64_t bits[2])
{
    bits[0] = bits[1] = 0;
    for (unsigned i = 0; i < irqs->n_vectors; i++)
        bits[i / 64] |= (uint64_t)irqs->msix[i].pending << i % 64;
}

static bool is_eventfd(int fd)
{
    char path[40], target[40];
    ssize_t length;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    length = readlink(path, target, sizeof(target));
    return length == 20 && memcmp(target, "anon_inode:[eventfd]", 20) == 0;
}

static struct vfu_vector *vector_of(struct vfu_irqs *irqs, uint32_t index, uint32_t i)
{
    switch (index) {
    case VFIO_PCI_INTX_IRQ_INDEX:
        return &irqs->intx;
    case VFIO_PCI_MSIX_IRQ_INDEX:
        return &irqs->msix[i];
    case VFIO_PCI_ERR_IRQ_INDEX:
        return &irqs->error;
    default:
        return &irqs->request;
    }
}

static void assign_counted(struct vfu_irqs *irqs, uint32_t index, uint32_t i, int fd)
{
    struct vfu_vector *vector = vector_of(irqs, index, i);

    if (index == VFIO_PCI_MSIX_IRQ_INDEX)
        irqs->n_assigned += (unsigned)(fd >= 0) - (unsigned)(vector->fd >= 0);
    assign(vector, fd);
    if (index == VFIO_PCI_MSIX_IRQ_INDEX && vector->pending && fd >= 0)
        raise_msix(vector);
    if (index == VFIO_PCI_INTX_IRQ_INDEX) {
        vector->masked = false;
        vfu_irqs_update_pin(irqs);
    }
}

static int set_eventfds(struct vfu_irqs *irqs, const struct vfu_irq_set *set, int *fds, unsigned n_fds)
{
    uint32_t action = set->flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;

    if (n_fds != 0 && n_fds != set->count)
        return EINVAL;
    for (unsigned i = 0; i < n_fds; i++) {
        if (!is_eventfd(fds[i]))
            return EINVAL;
    }
    if (action == VFIO_IRQ_SET_ACTION_UNMASK && set->index == VFIO_PCI_INTX_IRQ_INDEX && set->count == 1) {
        int error = vfu_watch_set(&irqs->intx_unmask, n_fds ? fds[0] : -1);

        if (error == 0 && n_fds)
            fds[0] = -1;
        return error;
    }
    if (action != VFIO_IRQ_SET_ACTION_TRIGGER)
        return EINVAL;
    for (uint32_t i = 0; i < set->count; i++) {
        assign_counted(irqs, set->index, set->start + i, n_fds ? fds[i] : -1);
        if (n_fds)
            fds[i] = -1;
    }
    return 0;
}

static void act(struct vfu_irqs *irqs, uint32_t index, uint32_t i, uint32_t action)
{
    struct vfu_vector *vector = vector_of(irqs, index, i);

    if (action == VFIO_IRQ_SET_ACTION_MASK) {
        vector->masked = true;
    } else if (action == VFIO_IRQ_SET_ACTION_UNMASK) {
        if (index == VFIO_PCI_INTX_IRQ_INDEX) {
            vfu_irqs_unmask_intx(irqs);
        } else {
            vector->masked = false;
            if (vector->pending)
                raise_msix(vector);
        }
    } else if (vector->fd >= 0) {
        signal_fd(vector);
    }
}

int vfu_irqs_set(struct vfu_irqs *irqs, const struct vfu_irq_set *set, const uint8_t *data, size_t n_data, int *fds,
                 unsigned n_fds)
{
    uint32_t kind = set->flags & VFIO_IRQ_SET_DATA_TYPE_MASK, action = set->flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;
    uint32_t info_flags, limit = vfu_irqs_count(irqs, set->index, &info_flags);

    /* One of each set of flags, and nothing else. */
    if (set->flags & ~(VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK) || __builtin_popcount(kind) != 1 ||
        __builtin_popcount(action) != 1)
        return EINVAL;
    if (set->index >= VFIO_PCI_NUM_IRQS || set->start > limit || set->count > limit - set->start)
        return EINVAL;
    if (n_fds != 0 && kind != VFIO_IRQ_SET_DATA_EVENTFD)
        return EINVAL;
    if (action != VFIO_IRQ_SET_ACTION_TRIGGER && !(info_flags & VFIO_IRQ_INFO_MASKABLE))
        return EINVAL;
    if (set->count == 0) {
        /* "Disables all interrupts of the index." */
        if (kind != VFIO_IRQ_SET_DATA_NONE || action != VFIO_IRQ_SET_ACTION_TRIGGER || set->start != 0)
            return EINVAL;
        for (uint32_t i = 0; i < limit; i++) {
            assign_counted(irqs, set->index, i, -1);
            vector_of(irqs, set->index, i)->masked = vector_of(irqs, set->index, i)->pending = false;
        }
        return 0;
    }
    if (kind == VFIO_IRQ_SET_DATA_EVENTFD)
        return set_eventfds(irqs, set, fds, n_fds);
    if (kind == VFIO_IRQ_SET_DATA_BOOL && n_data < set->count)
        return EINVAL;
    for (uint32_t i = 0; i < set->count; i++) {
        if (kind == VFIO_IRQ_SET_DATA_NONE || data[i])
            act(irqs, set->index, set->start + i, action);
    }
    return 0;
}
