/*
 * NVM Express numbers that the emulated controller needs: NVMe Base 2.0 and NVM Command Set 1.0.
 * Names are the specification's. Everything on the wire is little-endian and so must the machine
 * be.
 */
#ifndef NVME_ASYNC_EMULATOR_NVME_SPEC_H
#define NVME_ASYNC_EMULATOR_NVME_SPEC_H

#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the emulated controller runs on little-endian machines");

/* Registers (Base 2.0, 3.1.3). */
enum {
    REG_CAP = 0x00,
    REG_VS = 0x08,
    REG_INTMS = 0x0c,
    REG_INTMC = 0x10,
    REG_CC = 0x14,
    REG_CSTS = 0x1c,
    REG_AQA = 0x24,
    REG_ASQ = 0x28,
    REG_ACQ = 0x30,
    REG_CMBLOC = 0x38,
    REG_CMBSZ = 0x3c,
    REG_BPINFO = 0x40,
    REG_BPRSEL = 0x44,
    REG_BPMBL = 0x48,
    REG_CMBMSC = 0x50,
    REG_CMBSTS = 0x58,
    REG_CRTO = 0x68,
    REG_PMRCAP = 0xe00,
    REG_PMRCTL = 0xe04,
    REG_PMRSTS = 0xe08,
    REG_PMREBS = 0xe0c,
    REG_PMRSWTP = 0xe10,
    REG_PMRMSCL = 0xe14,
    REG_PMRMSCU = 0xe18,
};

#define NVME_VERSION 0x00020000u /* 2.0 */

#define CAP_CQR (1ull << 16)
#define CAP_CSS_NVM (1ull << 37)
#define CAP_CSS_IOCSS (1ull << 43) /* CC.CSS = 110b is accepted */
#define CAP_BPS (1ull << 45)
#define CAP_PMRS (1ull << 56)
#define CAP_CMBS (1ull << 57)
#define CAP_CRMS_CRWMS (1ull << 59)

#define CC_EN 0x1u
#define CC_CSS(cc) ((cc) >> 4 & 7)
#define CC_MPS(cc) ((cc) >> 7 & 15)
#define CC_AMS(cc) ((cc) >> 11 & 7)
#define CC_SHN(cc) ((cc) >> 14 & 3)
#define CC_IOSQES(cc) ((cc) >> 16 & 15)
#define CC_IOCQES(cc) ((cc) >> 20 & 15)
#define CC_WRITABLE 0x00fffff1u
#define CC_CSS_NVM 0u
#define CC_CSS_ALL 6u

#define CSTS_RDY 0x1u
#define CSTS_CFS 0x2u
#define CSTS_SHST_MASK 0xcu
#define CSTS_SHST_OCCURRING 0x4u
#define CSTS_SHST_COMPLETE 0x8u

struct nvme_sqe {
    uint8_t opcode;
    uint8_t flags; /* FUSE 1:0, PSDT 7:6 */
    uint16_t cid;
    uint32_t nsid;
    uint32_t cdw2;
    uint32_t cdw3;
    uint64_t mptr;
    uint64_t prp1;
    uint64_t prp2;
    uint32_t cdw10;
    uint32_t cdw11;
    uint32_t cdw12;
    uint32_t cdw13;
    uint32_t cdw14;
    uint32_t cdw15;
};
_Static_assert(sizeof(struct nvme_sqe) == 64, "SQE");

struct nvme_cqe {
    uint32_t result; /* DW0 */
    uint32_t dw1;
    uint16_t sqhd;
    uint16_t sqid;
    uint16_t cid;
    uint16_t status; /* status field << 1 | phase */
};
_Static_assert(sizeof(struct nvme_cqe) == 16, "CQE");

enum {
    ADMIN_DELETE_SQ = 0x00,
    ADMIN_CREATE_SQ = 0x01,
    ADMIN_GET_LOG_PAGE = 0x02,
    ADMIN_DELETE_CQ = 0x04,
    ADMIN_CREATE_CQ = 0x05,
    ADMIN_IDENTIFY = 0x06,
    ADMIN_ABORT = 0x08,
    ADMIN_SET_FEATURES = 0x09,
    ADMIN_GET_FEATURES = 0x0a,
    ADMIN_ASYNC_EVENT = 0x0c,
    ADMIN_KEEP_ALIVE = 0x18,
    ADMIN_DBBUF = 0x7c,
    ADMIN_FORMAT = 0x80,
    ADMIN_NS_MANAGEMENT = 0x0d,
    ADMIN_FIRMWARE_COMMIT = 0x10,
    ADMIN_FIRMWARE_DOWNLOAD = 0x11,
    ADMIN_SELF_TEST = 0x14,
    ADMIN_NS_ATTACHMENT = 0x15,
    ADMIN_DIRECTIVE_SEND = 0x19,
    ADMIN_DIRECTIVE_RECEIVE = 0x1a,
    ADMIN_SECURITY_SEND = 0x81,
    ADMIN_LOCKDOWN = 0x24,
    ADMIN_VIRTUALIZATION = 0x1c,
    ADMIN_CAPACITY = 0x20,
    ADMIN_SECURITY_RECEIVE = 0x82,
    ADMIN_SANITIZE = 0x84,
    ADMIN_LBA_STATUS = 0x86,
};

enum {
    IO_FLUSH = 0x00,
    IO_WRITE = 0x01,
    IO_READ = 0x02,
    IO_WRITE_UNCORRECTABLE = 0x04,
    IO_COMPARE = 0x05,
    IO_WRITE_ZEROES = 0x08,
    IO_DSM = 0x09,
    IO_VERIFY = 0x0c,
    IO_RESV_REGISTER = 0x0d,
    IO_RESV_REPORT = 0x0e,
    IO_RESV_ACQUIRE = 0x11,
    IO_MANAGEMENT_RECEIVE = 0x12,
    IO_RESV_RELEASE = 0x15,
    IO_COPY = 0x19,
    IO_MANAGEMENT_SEND = 0x1d,
    IO_ZONE_SEND = 0x79,
    IO_ZONE_RECEIVE = 0x7a,
    IO_ZONE_APPEND = 0x7d,
};

/* Of the key value command set. */
enum { KV_STORE = 0x01, KV_RETRIEVE = 0x02, KV_LIST = 0x06, KV_DELETE = 0x10, KV_EXIST = 0x14 };

enum {
    FEAT_ARBITRATION = 0x01,
    FEAT_POWER = 0x02,
    FEAT_TEMPERATURE = 0x04,
    FEAT_ERROR_RECOVERY = 0x05,
    FEAT_WRITE_CACHE = 0x06,
    FEAT_QUEUES = 0x07,
    FEAT_COALESCING = 0x08,
    FEAT_VECTOR = 0x09,
    FEAT_ATOMICITY = 0x0a,
    FEAT_ASYNC_EVENT = 0x0b,
    FEAT_AUTONOMOUS_POWER = 0x0c,
    FEAT_HOST_MEMORY = 0x0d,
    FEAT_TIMESTAMP = 0x0e,
    FEAT_KEEP_ALIVE = 0x0f,
    FEAT_NON_OPERATIONAL = 0x11,
    FEAT_LBA_STATUS = 0x15,
    FEAT_HOST_BEHAVIOUR = 0x16,
    FEAT_ENDURANCE = 0x18,
    FEAT_BOOT_PROTECTION = 0x85,
    FEAT_COMMAND_SET = 0x19,
    FEAT_FDP = 0x1d,
    FEAT_FDP_EVENTS = 0x1e,
    FEAT_HOST_ID = 0x81,
    FEAT_RESV_MASK = 0x82,
    FEAT_RESV_PERSIST = 0x83,
};

enum {
    LOG_SUPPORTED = 0x00,
    LOG_ERROR = 0x01,
    LOG_SMART = 0x02,
    LOG_FIRMWARE = 0x03,
    LOG_CHANGED_NS = 0x04,
    LOG_EFFECTS = 0x05,
    LOG_SELF_TEST = 0x06,
    LOG_TELEMETRY_HOST = 0x07,
    LOG_TELEMETRY_CONTROLLER = 0x08,
    LOG_ENDURANCE = 0x09,
    LOG_ANA = 0x0c,
    LOG_PERSISTENT = 0x0d,
    LOG_LBA_STATUS = 0x0e,
    LOG_ENDURANCE_EVENTS = 0x0f,
    LOG_FEATURES = 0x12,
    LOG_MI_EFFECTS = 0x13,
    LOG_LOCKDOWN = 0x14,
    LOG_BOOT_PARTITION = 0x15,
    LOG_FDP_CONFIGURATIONS = 0x20,
    LOG_FDP_USAGE = 0x21,
    LOG_FDP_STATISTICS = 0x22,
    LOG_FDP_EVENTS = 0x23,
    LOG_RESERVATION = 0x80,
    LOG_SANITIZE = 0x81,
    LOG_CHANGED_ZONES = 0xbf,
};

/* Results of a self-test and events of the Persistent Event log that others cause. */
enum {
    SELF_TEST_ABORTED = 1,
    SELF_TEST_ABORTED_RESET = 2,
    SELF_TEST_ABORTED_FORMAT = 4,
    SELF_TEST_ABORTED_SANITIZE = 9
};
enum {
    PEL_SMART = 0x01,
    PEL_FIRMWARE_COMMIT = 0x02,
    PEL_TIMESTAMP = 0x03,
    PEL_RESET = 0x04,
    PEL_NAMESPACE = 0x06,
    PEL_FORMAT_START = 0x07,
    PEL_FORMAT_COMPLETION = 0x08,
    PEL_SANITIZE_START = 0x09,
    PEL_SANITIZE_COMPLETION = 0x0a,
    PEL_SET_FEATURE = 0x0b,
    PEL_TELEMETRY = 0x0c,
};

/* Directive types, and the field of a write that has one. FDP events that are logged. */
enum { DIRECTIVE_IDENTIFY = 0, DIRECTIVE_STREAMS = 1, DIRECTIVE_PLACEMENT = 2 };
#define CDW12_DTYPE_OF(cdw12) ((cdw12) >> 20 & 15)
enum { FDP_NOT_FULLY_WRITTEN = 0x00, FDP_INVALID_IDENTIFIER = 0x03, FDP_IMPLICITLY_MODIFIED = 0x81 };

/* States of an ANA group (Base 2.1, 8.1.1). */
enum { ANA_OPTIMIZED = 1, ANA_NON_OPTIMIZED = 2, ANA_INACCESSIBLE = 3, ANA_PERSISTENT_LOSS = 4, ANA_CHANGE = 15 };

/* The status field without the phase: SC 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14. */
#define SC_MORE 0x2000u
#define SC_DNR 0x4000u
#define STATUS_CRD 0x1800u /* Command Retry Delay */
#define SC_CODE(status) ((status) & 0x7ffu) /* SCT and SC */

enum {
    SC_SUCCESS = 0x000,
    SC_INVALID_OPCODE = 0x001 | SC_DNR,
    SC_INVALID_FIELD = 0x002 | SC_DNR,
    SC_DATA_TRANSFER = 0x004 | SC_DNR,
    SC_INTERNAL = 0x006,
    SC_ABORT_REQUESTED = 0x007,
    SC_ABORTED_SQ_DELETION = 0x008,
    SC_FUSED_FAILED = 0x009 | SC_DNR,
    SC_FUSED_MISSING = 0x00a | SC_DNR,
    SC_INVALID_NAMESPACE = 0x00b | SC_DNR,
    SC_COMMAND_SEQUENCE = 0x00c | SC_DNR,
    SC_SGL_SEGMENT = 0x00d | SC_DNR,
    SC_SGL_NUMBER = 0x00e | SC_DNR,
    SC_SGL_LENGTH = 0x00f | SC_DNR,
    SC_SGL_METADATA_LENGTH = 0x010 | SC_DNR,
    SC_SGL_TYPE = 0x011 | SC_DNR,
    SC_SGL_GRANULARITY = 0x01e | SC_DNR,
    SC_PRP_OFFSET = 0x013 | SC_DNR,
    SC_ATOMIC_WRITE_UNIT = 0x014 | SC_DNR,
    SC_HOST_ID_INCONSISTENT = 0x018 | SC_DNR,
    SC_KEEP_ALIVE_INVALID = 0x01a | SC_DNR,
    SC_IOCS_COMBINATION_REJECTED = 0x12b | SC_DNR,
    SC_SANITIZE_FAILED = 0x01c | SC_DNR,
    SC_SANITIZE_IN_PROGRESS = 0x01d,
    SC_LOCKDOWN_PROHIBITED = 0x023 | SC_DNR,
    SC_FDP_DISABLED = 0x029 | SC_DNR,
    SC_PLACEMENT_HANDLES = 0x02a | SC_DNR,
    SC_LBA_RANGE = 0x080 | SC_DNR,
    SC_CAPACITY_EXCEEDED = 0x081,
    SC_RESERVATION_CONFLICT = 0x083 | SC_DNR,
    SC_FORMAT_IN_PROGRESS = 0x084,
    SC_KV_VALUE_SIZE = 0x085 | SC_DNR,
    SC_KV_KEY_SIZE = 0x086 | SC_DNR,
    SC_KV_NO_KEY = 0x087 | SC_DNR,
    SC_KV_EXISTS = 0x089 | SC_DNR,

    SC_CQ_INVALID = 0x100 | SC_DNR,
    SC_QID_INVALID = 0x101 | SC_DNR,
    SC_QUEUE_SIZE = 0x102 | SC_DNR,
    SC_AER_LIMIT = 0x105 | SC_DNR,
    SC_VECTOR_INVALID = 0x108 | SC_DNR,
    SC_LOG_PAGE_INVALID = 0x109 | SC_DNR,
    SC_FORMAT_INVALID = 0x10a | SC_DNR,
    SC_QUEUE_DELETION = 0x10c | SC_DNR,
    SC_NOT_SAVEABLE = 0x10d | SC_DNR,
    SC_NOT_CHANGEABLE = 0x10e | SC_DNR,
    SC_NOT_NS_SPECIFIC = 0x10f | SC_DNR,
    SC_FIRMWARE_SLOT = 0x106 | SC_DNR,
    SC_FIRMWARE_IMAGE = 0x107 | SC_DNR,
    SC_OVERLAPPING_RANGE = 0x114 | SC_DNR,
    SC_NS_CAPACITY = 0x115 | SC_DNR,
    SC_NSID_UNAVAILABLE = 0x116 | SC_DNR,
    SC_NS_ATTACHED = 0x118 | SC_DNR,
    SC_NS_NOT_ATTACHED = 0x11a | SC_DNR,
    SC_THIN_PROVISIONING = 0x11b | SC_DNR,
    SC_CONTROLLER_LIST = 0x11c | SC_DNR,
    SC_SELF_TEST_IN_PROGRESS = 0x11d | SC_DNR,
    SC_BOOT_PROHIBITED = 0x11e | SC_DNR,
    SC_CONTROLLER_ID = 0x11f | SC_DNR,
    SC_SECONDARY_STATE = 0x120 | SC_DNR,
    SC_RESOURCES = 0x121 | SC_DNR,
    SC_RESOURCE_ID = 0x122 | SC_DNR,
    SC_INSUFFICIENT_CAPACITY = 0x126 | SC_DNR,
    SC_IDENTIFIER_UNAVAILABLE = 0x12d | SC_DNR,
    SC_LOCKDOWN_NOT_SUPPORTED = 0x128 | SC_DNR,
    SC_STREAM_ALLOCATION = 0x17f | SC_DNR,
    SC_PROTECTION_INFO = 0x181 | SC_DNR,
    SC_COMMAND_SIZE = 0x183 | SC_DNR,
    SC_INCOMPATIBLE_NAMESPACE = 0x185 | SC_DNR,
    SC_ZONE_BOUNDARY = 0x1b8 | SC_DNR,
    SC_ZONE_FULL = 0x1b9 | SC_DNR,
    SC_ZONE_READ_ONLY = 0x1ba | SC_DNR,
    SC_ZONE_OFFLINE = 0x1bb | SC_DNR,
    SC_ZONE_INVALID_WRITE = 0x1bc | SC_DNR,
    SC_TOO_MANY_ACTIVE = 0x1bd | SC_DNR,
    SC_TOO_MANY_OPEN = 0x1be | SC_DNR,
    SC_ZONE_TRANSITION = 0x1bf | SC_DNR,

    SC_ANA_PERSISTENT_LOSS = 0x301 | SC_DNR,
    SC_ANA_INACCESSIBLE = 0x302,
    SC_ANA_TRANSITION = 0x303,

    SC_WRITE_FAULT = 0x280,
    SC_READ_ERROR = 0x281,
    SC_GUARD = 0x282 | SC_DNR,
    SC_APPLICATION_TAG = 0x283 | SC_DNR,
    SC_REFERENCE_TAG = 0x284 | SC_DNR,
    SC_STORAGE_TAG = 0x288 | SC_DNR,
    SC_COMPARE_FAILURE = 0x285 | SC_DNR,

    SC_ASYNC = 0xffff, /* ours, never posted: the command completes later */
};

/* Asynchronous events (Base 2.0, 5.2.1): type, and information within the type. */
enum { EVENT_ERROR = 0, EVENT_SMART = 1, EVENT_NOTICE = 2, EVENT_IO = 6 };
enum { ERROR_INVALID_DOORBELL = 0, ERROR_INVALID_DOORBELL_VALUE = 1 };
enum { SMART_TEMPERATURE = 1 };
enum {
    NOTICE_NAMESPACE = 0,
    NOTICE_FIRMWARE = 1,
    NOTICE_TELEMETRY = 2,
    NOTICE_ANA = 3,
    NOTICE_LBA_STATUS = 5,
    NOTICE_ZONES = 0xef
};
enum { IO_EVENT_RESERVATION = 0, IO_EVENT_SANITIZED = 1 };

#define HOST_BEHAVIOUR_ACRE 0   /* byte of feature 16h: Advanced Command Retry Enable */
#define HOST_BEHAVIOUR_LBAFEE 2 /* byte of feature 16h: LBA Format Extension Enable */
#define HOST_BEHAVIOUR_CDFE 4   /* Copy Descriptor Formats Enable, by format */

enum { CSI_NVM = 0, CSI_KV = 1, CSI_ZNS = 2 }; /* I/O command sets */

#define NSID_ALL 0xffffffffu

#endif
