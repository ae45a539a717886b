#define _GNU_SOURCE
#include "emulator/vfu_pci.h"

#include <linux/pci_regs.h>
#include <string.h>

#include "emulator/ctrl.h"

enum { PM_CAP = 0x40, MSIX_CAP = 0x50, EXPRESS_CAP = 0x60 };

static void put(struct vfu_pci *pci, uint32_t offset, unsigned width, uint32_t value, uint32_t writable)
{
    for (unsigned i = 0; i < width; i++) {
        pci->bytes[offset + i] = (uint8_t)(value >> 8 * i);
        pci->writable[offset + i] = (uint8_t)(writable >> 8 * i);
    }
}

static void put_bar64(struct vfu_pci *pci, unsigned bar, uint32_t nbytes)
{
    put(pci, PCI_BASE_ADDRESS_0 + 4 * bar, 4, PCI_BASE_ADDRESS_MEM_TYPE_64, ~(nbytes - 1));
    put(pci, PCI_BASE_ADDRESS_0 + 4 * bar + 4, 4, 0, ~0u);
}

void vfu_pci_init(struct vfu_pci *pci, const struct vfu_ids *ids, uint64_t serial, unsigned n_vectors)
{
    memset(pci, 0, sizeof(*pci));
    put(pci, PCI_VENDOR_ID, 2, ids->vendor, 0);
    put(pci, PCI_DEVICE_ID, 2, ids->device, 0);
    put(pci, PCI_COMMAND, 2, 0,
        PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_PARITY | PCI_COMMAND_SERR |
            PCI_COMMAND_INTX_DISABLE);
    put(pci, PCI_STATUS, 2, PCI_STATUS_CAP_LIST, 0);
    put(pci, PCI_CLASS_REVISION, 4, 0x01080200 | 0x01, 0); /* mass storage, NVM, NVMe; revision 1 */
    put(pci, PCI_CACHE_LINE_SIZE, 1, 0, 0xff);
    put_bar64(pci, 0, EMU_BAR0_SIZE);
    put_bar64(pci, VFU_MSIX_BAR, VFU_MSIX_BAR_SIZE);
    put(pci, PCI_SUBSYSTEM_VENDOR_ID, 2, ids->subsystem_vendor, 0);
    put(pci, PCI_SUBSYSTEM_ID, 2, ids->subsystem, 0);
    put(pci, PCI_CAPABILITY_LIST, 1, PM_CAP, 0);
    put(pci, PCI_INTERRUPT_LINE, 1, 0, 0xff);
    put(pci, PCI_INTERRUPT_PIN, 1, 1, 0);

    put(pci, PM_CAP, 2, PCI_CAP_ID_PM | MSIX_CAP << 8, 0);
    put(pci, PM_CAP + PCI_PM_PMC, 2, 3, 0);
    put(pci, PM_CAP + PCI_PM_CTRL, 2, PCI_PM_CTRL_NO_SOFT_RESET, PCI_PM_CTRL_STATE_MASK);

    put(pci, MSIX_CAP, 2, PCI_CAP_ID_MSIX | EXPRESS_CAP << 8, 0);
    put(pci, MSIX_CAP + PCI_MSIX_FLAGS, 2, n_vectors - 1, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    put(pci, MSIX_CAP + PCI_MSIX_TABLE, 4, VFU_MSIX_BAR, 0);
    put(pci, MSIX_CAP + PCI_MSIX_PBA, 4, VFU_MSIX_PBA_OFFSET | VFU_MSIX_BAR, 0);

    put(pci, EXPRESS_CAP, 2, PCI_CAP_ID_EXP, 0);
    put(pci, EXPRESS_CAP + PCI_EXP_FLAGS, 2, 2 | PCI_EXP_TYPE_ENDPOINT << 4, 0);
    put(pci, EXPRESS_CAP + PCI_EXP_DEVCAP, 4, PCI_EXP_DEVCAP_RBER | PCI_EXP_DEVCAP_FLR, 0);
    put(pci, EXPRESS_CAP + PCI_EXP_DEVCTL, 2, PCI_EXP_DEVCTL_RELAX_EN | PCI_EXP_DEVCTL_NOSNOOP_EN, 0x7fff);
    /* 8 GT/s, four lanes, as an ordinary drive reports. */
    put(pci, EXPRESS_CAP + PCI_EXP_LNKCAP, 4, PCI_EXP_LNKCAP_SLS_8_0GB | 4 << 4, 0);
    put(pci, EXPRESS_CAP + PCI_EXP_LNKCTL, 2, 0, PCI_EXP_LNKCTL_ASPMC | PCI_EXP_LNKCTL_CCC);
    put(pci, EXPRESS_CAP + PCI_EXP_LNKSTA, 2, PCI_EXP_LNKSTA_CLS_8_0GB | PCI_EXP_LNKSTA_NLW_X4, 0);
    put(pci, EXPRESS_CAP + PCI_EXP_DEVCAP2, 4, PCI_EXP_DEVCAP2_COMP_TMOUT_DIS, 0);
    put(pci, EXPRESS_CAP + PCI_EXP_DEVCTL2, 2, 0, PCI_EXP_DEVCTL2_COMP_TMOUT_DIS);
    put(pci, EXPRESS_CAP + PCI_EXP_LNKCAP2, 4,
        PCI_EXP_LNKCAP2_SLS_2_5GB | PCI_EXP_LNKCAP2_SLS_5_0GB | PCI_EXP_LNKCAP2_SLS_8_0GB, 0);
    put(pci, EXPRESS_CAP + PCI_EXP_LNKCTL2, 2, PCI_EXP_LNKCTL2_TLS_8_0GT, PCI_EXP_LNKCTL2_TLS);

    /* PCI Express Base 4.0, 7.9.3: version 1, no next capability; then the number. */
    pci->serial[0] = PCI_EXT_CAP_ID_DSN;
    pci->serial[2] = 1;
    for (unsigned i = 0; i < 8; i++)
        pci->serial[4 + i] = (uint8_t)(serial >> 8 * i);
}

void vfu_pci_set_region(struct vfu_pci *pci, uint32_t nbytes)
{
    if (!nbytes)
        return;
    put(pci, PCI_BASE_ADDRESS_2, 4, PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH, ~(nbytes - 1));
    put(pci, PCI_BASE_ADDRESS_3, 4, 0, ~0u);
}

void vfu_pci_read(const struct vfu_pci *pci, uint32_t offset, uint8_t *data, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t at = offset + i;

        if (at < VFU_CONFIG_STANDARD)
            data[i] = pci->bytes[at];
        else
            data[i] = at - VFU_CONFIG_STANDARD < sizeof(pci->serial) ? pci->serial[at - VFU_CONFIG_STANDARD] : 0;
    }
}

bool vfu_pci_write(struct vfu_pci *pci, uint32_t offset, const uint8_t *data, size_t count)
{
    bool reset = false;

    for (size_t i = 0; i < count && offset + i < VFU_CONFIG_STANDARD; i++) {
        size_t at = offset + i;

        pci->bytes[at] = (uint8_t)((pci->bytes[at] & ~pci->writable[at]) | (data[i] & pci->writable[at]));
        /* Initiate Function Level Reset reads as zero (PCI Express Base 4.0, 7.5.3.4). */
        if (at == EXPRESS_CAP + PCI_EXP_DEVCTL + 1 && (data[i] & PCI_EXP_DEVCTL_BCR_FLR >> 8))
            reset = true;
    }
    return reset;
}

bool vfu_pci_intx_disabled(const struct vfu_pci *pci)
{
    return pci->bytes[PCI_COMMAND + 1] & PCI_COMMAND_INTX_DISABLE >> 8;
}

bool vfu_pci_msix_enabled(const struct vfu_pci *pci)
{
    return pci->bytes[MSIX_CAP + PCI_MSIX_FLAGS + 1] & PCI_MSIX_FLAGS_ENABLE >> 8;
}

void vfu_pci_set_intx_status(struct vfu_pci *pci, bool asserted)
{
    if (asserted)
        pci->bytes[PCI_STATUS] |= PCI_STATUS_INTERRUPT;
    else
        pci->bytes[PCI_STATUS] &= (uint8_t)~PCI_STATUS_INTERRUPT;
}
