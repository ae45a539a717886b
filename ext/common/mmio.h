/*
 * Accesses to registers that are mapped memory, and the order between them and memory that the
 * device reads or writes. Every store to a register window, doorbells and shadow doorbells
 * included, goes through here: by QueuePair's pointer or by Mmio's methods.
 */
#ifndef NVME_ASYNC_COMMON_MMIO_H
#define NVME_ASYNC_COMMON_MMIO_H

#include <stdatomic.h>
#include <stdint.h>

/*
 * Between memory and the store that has the device read it: the device must see the entries that a
 * doorbell value covers (Base 2.0, 3.3.3.1: the host updates the entries, then the doorbell), and
 * admin queues that are cleared before CC.EN=1. x86 keeps stores in order, those to uncached memory
 * included, so the compiler alone has to be held back. On AArch64 a register is Device memory and
 * its reader lies outside the inner shareable domain.
 */
static inline void mmio_before_store(void)
{
#if defined(__x86_64__) || defined(__i386__)
    atomic_signal_fence(memory_order_seq_cst);
#elif defined(__aarch64__)
    __asm__ volatile("dmb oshst" ::: "memory");
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Between a load that says what the device has written, be it a register or a phase tag, and the
 * load of that. */
static inline void mmio_after_load(void)
{
#if defined(__aarch64__)
    __asm__ volatile("dmb oshld" ::: "memory");
#else
    atomic_thread_fence(memory_order_acquire);
#endif
}

/* One access of exactly that width: volatile forbids the compiler to split, merge or drop it. */
static inline uint32_t mmio_load32(const volatile void *address)
{
    const uint32_t value = *(const volatile uint32_t *)address;
    mmio_after_load();
    return value;
}

static inline uint64_t mmio_load64(const volatile void *address)
{
    const uint64_t value = *(const volatile uint64_t *)address;
    mmio_after_load();
    return value;
}

static inline void mmio_store32(volatile void *address, uint32_t value)
{
    mmio_before_store();
    *(volatile uint32_t *)address = value;
}

static inline void mmio_store64(volatile void *address, uint64_t value)
{
    mmio_before_store();
    *(volatile uint64_t *)address = value;
}

#endif
