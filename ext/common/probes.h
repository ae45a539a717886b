/*
 * Static tracepoints (USDT), for bpftrace, perf, SystemTap and gdb: docs/tracing.md. Each is one
 * nop and an entry in a section that is not loaded; arguments are read where they are, in registers
 * or memory. <sys/sdt.h> is used where it is installed; otherwise the few lines below write the
 * same entries, in the format that it documents ("stapsdt" notes, version 3). NVP_NONE: none at
 * all.
 *
 * NVP_PROBEn(name, a1, …, an): a tracepoint nvme_async:name with n arguments, unsigned integers or
 * pointers of any width.
 */
#ifndef NVME_ASYNC_COMMON_PROBES_H
#define NVME_ASYNC_COMMON_PROBES_H

#include <stdint.h>

#if defined(NVP_NONE) || !defined(__linux__) || !(defined(__x86_64__) || defined(__aarch64__))

#define NVP_PROBE1(name, a) ((void)(a))
#define NVP_PROBE2(name, a, b) ((void)(a), (void)(b))
#define NVP_PROBE3(name, a, b, c) ((void)(a), (void)(b), (void)(c))
#define NVP_PROBE4(name, a, b, c, d) ((void)(a), (void)(b), (void)(c), (void)(d))

#elif defined(__has_include) && __has_include(<sys/sdt.h>)

#include <sys/sdt.h>
#define NVP_PROBE1(name, a) DTRACE_PROBE1(nvme_async, name, a)
#define NVP_PROBE2(name, a, b) DTRACE_PROBE2(nvme_async, name, a, b)
#define NVP_PROBE3(name, a, b, c) DTRACE_PROBE3(nvme_async, name, a, b, c)
#define NVP_PROBE4(name, a, b, c, d) DTRACE_PROBE4(nvme_async, name, a, b, c, d)

#else

#define NVP_NOTE(name, arguments)                                                       \
    "990: nop\n"                                                                        \
    ".pushsection .note.stapsdt, \"?\", \"note\"\n"                                     \
    ".balign 4\n"                                                                       \
    ".4byte 992f - 991f, 994f - 993f, 3\n"                                              \
    "991: .asciz \"stapsdt\"\n"                                                         \
    "992: .balign 4\n"                                                                  \
    "993: .8byte 990b\n"                                                                \
    ".8byte _.stapsdt.base\n" /* by which a tool notices that the file was prelinked */ \
    ".8byte 0\n"              /* no semaphore */                                        \
    ".asciz \"nvme_async\"\n"                                                           \
    ".asciz \"" #name "\"\n"                                                            \
    ".asciz \"" arguments "\"\n"                                                        \
    "994: .balign 4\n"                                                                  \
    ".popsection\n"                                                                     \
    ".ifndef _.stapsdt.base\n"                                                          \
    ".pushsection .stapsdt.base, \"aG\", \"progbits\", .stapsdt.base, comdat\n"         \
    ".weak _.stapsdt.base\n"                                                            \
    ".hidden _.stapsdt.base\n"                                                          \
    "_.stapsdt.base: .space 1\n"                                                        \
    ".size _.stapsdt.base, 1\n"                                                         \
    ".popsection\n"                                                                     \
    ".endif\n"

#define NVP_ARGUMENT(x) "n"(sizeof(x)), "nor"(x)
#define NVP_PROBE1(name, a) __asm__ volatile(NVP_NOTE(name, "%c0@%1")::NVP_ARGUMENT(a))
#define NVP_PROBE2(name, a, b) __asm__ volatile(NVP_NOTE(name, "%c0@%1 %c2@%3")::NVP_ARGUMENT(a), NVP_ARGUMENT(b))
#define NVP_PROBE3(name, a, b, c) \
    __asm__ volatile(NVP_NOTE(name, "%c0@%1 %c2@%3 %c4@%5")::NVP_ARGUMENT(a), NVP_ARGUMENT(b), NVP_ARGUMENT(c))
#define NVP_PROBE4(name, a, b, c, d)                                                                                   \
    __asm__ volatile(NVP_NOTE(name, "%c0@%1 %c2@%3 %c4@%5 %c6@%7")::NVP_ARGUMENT(a), NVP_ARGUMENT(b), NVP_ARGUMENT(c), \
                     NVP_ARGUMENT(d))

#endif

#endif
