/*
 * Interrupts towards the client: an eventfd for each MSI-X vector, one for INTx, and the error and
 * request ones that a client may set and this device never raises.
 *
 * Masks are those of SET_IRQS. The mask bits inside the MSI-X table are kept as memory only: a
 * virtual machine monitor traps the table itself and its guest's masks never arrive here, so
 * obeying the power-on value (all masked) would suppress all interrupts.
 */
#ifndef NVME_ASYNC_EMULATOR_VFU_IRQ_H
#define NVME_ASYNC_EMULATOR_VFU_IRQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "emulator/ctrl.h"
#include "emulator/vfu_pci.h"
#include "emulator/vfu_proto.h"
#include "emulator/vfu_watch.h"

struct vfu_vector {
    int fd;        /* -1 = none */
    bool blocking; /* the eventfd may make a write wait: ask poll() first */
    bool masked, pending;
};

struct vfu_irqs {
    struct vfu_pci *pci;
    unsigned n_vectors;
    unsigned n_assigned; /* MSI-X vectors with an eventfd */
    struct vfu_vector msix[EMU_MAX_VECTORS];
    struct vfu_vector intx; /* masked: by itself at every signal, until the client unmasks (VFIO_IRQ_INFO_AUTOMASKED) */
    struct vfu_watch intx_unmask; /* the eventfd that unmasks INTx when written */
    struct vfu_vector error, request;
    struct emu_ctrl *ctrl; /* whose pin INTx is */
};

void vfu_irqs_init(struct vfu_irqs *irqs, struct vfu_pci *pci, unsigned n_vectors);
/* Closes every eventfd, forgets masks and what was pending. */
void vfu_irqs_reset(struct vfu_irqs *irqs);
/* Number of interrupts of a VFIO_PCI_*_IRQ_INDEX and its VFIO_IRQ_INFO_* flags. */
unsigned vfu_irqs_count(const struct vfu_irqs *irqs, uint32_t index, uint32_t *flags);
/* DEVICE_SET_IRQS. 0 or an errno. Takes descriptors out of fds (leaving -1) as it keeps them. */
int vfu_irqs_set(struct vfu_irqs *irqs, const struct vfu_irq_set *set, const uint8_t *data, size_t n_data, int *fds,
                 unsigned n_fds);
/* Raises `vector`: as MSI-X if the client uses that, as INTx otherwise. */
void vfu_irqs_raise(struct vfu_irqs *irqs, unsigned vector);
void vfu_irqs_unmask_intx(struct vfu_irqs *irqs);
/* Updates the pin after a change of a register, a doorbell or the configuration space. */
void vfu_irqs_update_pin(struct vfu_irqs *irqs);
/* The pending bit array, 16 bytes. */
void vfu_irqs_pending(const struct vfu_irqs *irqs, uint64_t bits[2]);

#endif
