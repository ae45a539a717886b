/*
 * The controller's PCI configuration space: type 0 header, power management, MSI-X and PCI Express
 * capabilities (PCI Local Bus 3.0 chapter 6, PCI Express Base 4.0 chapter 7, NVMe over PCIe
 * Transport 1.0 section 3.8).
 *
 * The command register is kept but not enforced: registers and DMA work regardless of memory space
 * and bus master enable, because clients other than virtual machines often do not set them. Only
 * INTx disable has an effect.
 */
#ifndef NVME_ASYNC_EMULATOR_VFU_PCI_H
#define NVME_ASYNC_EMULATOR_VFU_PCI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VFU_CONFIG_SIZE 4096
#define VFU_CONFIG_STANDARD 256 /* beyond it: Device Serial Number, the only extended capability, and zeroes */

#define VFU_REGION_BAR 2 /* the controller's own memory, if it has any */
#define VFU_MSIX_BAR 4
#define VFU_MSIX_BAR_SIZE 0x2000
#define VFU_MSIX_PBA_OFFSET 0x1000

struct vfu_pci {
    uint8_t bytes[VFU_CONFIG_STANDARD];
    uint8_t writable[VFU_CONFIG_STANDARD]; /* the bits of each byte that a write changes */
    uint8_t serial[12];                    /* at VFU_CONFIG_STANDARD, read only */
};

/* Power-on values. serial: for the Device Serial Number capability. */
/* The identity of the function, as in the four words of its configuration space. */
struct vfu_ids {
    uint16_t vendor, device, subsystem_vendor, subsystem;
};

void vfu_pci_init(struct vfu_pci *pci, const struct vfu_ids *ids, uint64_t serial, unsigned n_vectors);
/* After it: the size of the BAR with the controller's own memory, a power of two; 0: none. */
void vfu_pci_set_region(struct vfu_pci *pci, uint32_t nbytes);
/* [offset, offset+count) lies inside VFU_CONFIG_SIZE; the caller checked. */
void vfu_pci_read(const struct vfu_pci *pci, uint32_t offset, uint8_t *data, size_t count);
/* True if the write requested a function level reset. */
bool vfu_pci_write(struct vfu_pci *pci, uint32_t offset, const uint8_t *data, size_t count);
bool vfu_pci_intx_disabled(const struct vfu_pci *pci);
bool vfu_pci_msix_enabled(const struct vfu_pci *pci);
/* Status.Interrupt Status. */
void vfu_pci_set_intx_status(struct vfu_pci *pci, bool asserted);

#endif
