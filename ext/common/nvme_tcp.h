/*
 * The PDUs of NVMe/TCP (NVM Express TCP Transport 1.0, 3.6.2) as they lie on the wire:
 * little-endian, no gaps. tests/unit/test_tcp_pdu.py has golden bytes of each from independent
 * sources.
 */
#ifndef NVME_ASYNC_COMMON_NVME_TCP_H
#define NVME_ASYNC_COMMON_NVME_TCP_H

#include <stddef.h>
#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "PDUs are read and written in place");

enum tcp_pdu {
    TCP_ICREQ = 0x00,
    TCP_ICRESP = 0x01,
    TCP_H2C_TERM = 0x02,
    TCP_C2H_TERM = 0x03,
    TCP_COMMAND = 0x04,
    TCP_RESPONSE = 0x05,
    TCP_H2C_DATA = 0x06,
    TCP_C2H_DATA = 0x07,
    TCP_R2T = 0x09,
};

enum {
    TCP_HDGSTF = 1u << 0,
    TCP_DDGSTF = 1u << 1,
    TCP_LAST_PDU = 1u << 2,
    TCP_SUCCESS = 1u << 3, /* C2HData: no response capsule follows */
};

/* ICReq and ICResp: which digests are in use. */
enum { TCP_HDGST_ENABLE = 1u << 0, TCP_DDGST_ENABLE = 1u << 1 };

/* Fatal Error Status of a TermReq (3.6.2.4). */
enum tcp_fes {
    TCP_FES_HEADER_FIELD = 1,
    TCP_FES_SEQUENCE = 2,
    TCP_FES_HEADER_DIGEST = 3,
    TCP_FES_OUT_OF_RANGE = 4,
    TCP_FES_LIMIT = 5,
    TCP_FES_PARAMETER = 6,
};

#define TCP_DIGEST 4u
#define TCP_TERM_MAX 152u /* a TermReq: its header and at most 128 bytes of the PDU that was wrong */

struct tcp_ch {
    uint8_t type, flags, hlen, pdo;
    uint32_t plen;
};
_Static_assert(sizeof(struct tcp_ch) == 8, "common header");

/* ICReq; ICResp has CPDA in the place of HPDA, and MAXH2CDATA in that of MAXR2T. */
struct tcp_ic {
    struct tcp_ch ch;
    uint16_t pfv;
    uint8_t pda; /* alignment of data, in dwords, zero-based */
    uint8_t dgst;
    uint32_t limit; /* MAXR2T, zero-based, or MAXH2CDATA in bytes */
    uint8_t reserved[112];
};
_Static_assert(sizeof(struct tcp_ic) == 128, "ICReq and ICResp");

struct __attribute__((packed)) tcp_term {
    struct tcp_ch ch;
    uint16_t fes;
    uint32_t fei;
    uint8_t reserved[10];
};
_Static_assert(sizeof(struct tcp_term) == 24, "TermReq");
_Static_assert(offsetof(struct tcp_term, fei) == 10, "FEI");

struct tcp_command {
    struct tcp_ch ch;
    uint8_t sqe[64];
};
_Static_assert(sizeof(struct tcp_command) == 72, "CapsuleCmd");

struct tcp_response {
    struct tcp_ch ch;
    uint32_t dw0, dw1;
    uint16_t sqhd, sqid, cid, status; /* status << 1, no phase */
};
_Static_assert(sizeof(struct tcp_response) == 24, "CapsuleResp");

/* H2CData, C2HData (ttag reserved) and R2T (offset and length are those requested). */
struct tcp_data {
    struct tcp_ch ch;
    uint16_t cccid, ttag;
    uint32_t offset, length;
    uint32_t reserved;
};
_Static_assert(sizeof(struct tcp_data) == 24, "data PDUs");

/* SGL descriptors in a capsule (Base 2.0, 4.1.2). */
struct __attribute__((packed)) tcp_sgl {
    uint64_t address;
    uint32_t length;
    uint8_t reserved[3];
    uint8_t type;
};
_Static_assert(sizeof(struct tcp_sgl) == 16, "SGL descriptor");

#define TCP_SQE_SGL 24u          /* offset of SGL1 in a submission queue entry */
#define TCP_PSDT_SGL 0x40u       /* SQE byte 1: SGLs are used */
#define TCP_SGL_IN_CAPSULE 0x01u /* data block, address is an offset in the capsule */
#define TCP_SGL_TRANSPORT 0x5au  /* transport data block, subtype Ah: by data PDUs */

static inline uint32_t tcp_align(uint32_t at, uint32_t alignment)
{
    return (at + alignment - 1) / alignment * alignment;
}

#endif
