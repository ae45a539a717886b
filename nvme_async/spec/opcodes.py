"""Opcodes, and the identifiers that select data structures, log pages, features and actions."""

from __future__ import annotations

from enum import IntEnum, IntFlag

NSID_ALL = 0xFFFF_FFFF
"""The broadcast namespace identifier: all namespaces (or, for log pages, the controller)."""


class Direction(IntEnum):
    """Which way a command moves data: bits 1:0 of its opcode (Base 3.1.2, opcode tables)."""

    NONE = 0
    HOST_TO_CONTROLLER = 1
    CONTROLLER_TO_HOST = 2
    BIDIRECTIONAL = 3


def direction(opcode: int) -> Direction:
    """The data transfer direction of an opcode.

    A command may still move nothing, a Set Features for example.
    """
    return Direction(opcode & 3)


class AdminOpcode(IntEnum):
    """Admin commands (Base 5, opcodes for admin commands)."""

    DELETE_IO_SQ = 0x00
    CREATE_IO_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_IO_CQ = 0x04
    CREATE_IO_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    NAMESPACE_MANAGEMENT = 0x0D
    FIRMWARE_COMMIT = 0x10
    FIRMWARE_IMAGE_DOWNLOAD = 0x11
    DEVICE_SELF_TEST = 0x14
    NAMESPACE_ATTACHMENT = 0x15
    KEEP_ALIVE = 0x18
    DIRECTIVE_SEND = 0x19
    DIRECTIVE_RECEIVE = 0x1A
    VIRTUALIZATION_MANAGEMENT = 0x1C
    NVME_MI_SEND = 0x1D
    NVME_MI_RECEIVE = 0x1E
    CAPACITY_MANAGEMENT = 0x20
    DISCOVERY_INFORMATION_MANAGEMENT = 0x21
    FABRIC_ZONING_RECEIVE = 0x22
    LOCKDOWN = 0x24
    FABRIC_ZONING_LOOKUP = 0x25
    CLEAR_EXPORTED_NVM_RESOURCE_CONFIGURATION = 0x28
    FABRIC_ZONING_SEND = 0x29
    CREATE_EXPORTED_NVM_SUBSYSTEM = 0x2A
    MANAGE_EXPORTED_NVM_SUBSYSTEM = 0x2D
    MANAGE_EXPORTED_NAMESPACE = 0x31
    MANAGE_EXPORTED_PORT = 0x35
    SEND_DISCOVERY_LOG_PAGE = 0x39
    TRACK_SEND = 0x3D
    TRACK_RECEIVE = 0x3E
    MIGRATION_SEND = 0x41
    MIGRATION_RECEIVE = 0x42
    CONTROLLER_DATA_QUEUE = 0x45
    DOORBELL_BUFFER_CONFIG = 0x7C
    FABRICS = 0x7F
    FORMAT_NVM = 0x80
    SECURITY_SEND = 0x81
    SECURITY_RECEIVE = 0x82
    SANITIZE = 0x84
    GET_LBA_STATUS = 0x86


class NvmOpcode(IntEnum):
    """I/O commands of the NVM command set (NVM 3, Base 7)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_UNCORRECTABLE = 0x04
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C
    RESERVATION_REGISTER = 0x0D
    RESERVATION_REPORT = 0x0E
    RESERVATION_ACQUIRE = 0x11
    IO_MANAGEMENT_RECEIVE = 0x12
    RESERVATION_RELEASE = 0x15
    CANCEL = 0x18
    COPY = 0x19
    IO_MANAGEMENT_SEND = 0x1D


class ZnsOpcode(IntEnum):
    """What the zoned namespace command set adds to the NVM command set (ZNS 3)."""

    ZONE_MANAGEMENT_SEND = 0x79
    ZONE_MANAGEMENT_RECEIVE = 0x7A
    ZONE_APPEND = 0x7D


class Csi(IntEnum):
    """Command set identifiers (Base 5.17)."""

    NVM = 0
    KEY_VALUE = 1
    ZNS = 2


class Cns(IntEnum):
    """What Identify returns: Controller or Namespace Structure (Base 5.17)."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    NVM_SETS = 0x04
    CSI_NAMESPACE = 0x05
    CSI_CONTROLLER = 0x06
    CSI_ACTIVE_NAMESPACES = 0x07
    INDEPENDENT_NAMESPACE = 0x08
    NAMESPACE_USER_DATA_FORMAT = 0x09
    CSI_NAMESPACE_USER_DATA_FORMAT = 0x0A
    ALLOCATED_NAMESPACES = 0x10
    ALLOCATED_NAMESPACE = 0x11
    NAMESPACE_CONTROLLERS = 0x12
    CONTROLLERS = 0x13
    PRIMARY_CONTROLLER_CAPABILITIES = 0x14
    SECONDARY_CONTROLLERS = 0x15
    NAMESPACE_GRANULARITY = 0x16
    UUIDS = 0x17
    DOMAINS = 0x18
    ENDURANCE_GROUPS = 0x19
    CSI_ALLOCATED_NAMESPACES = 0x1A
    CSI_ALLOCATED_NAMESPACE = 0x1B
    COMMAND_SETS = 0x1C
    UNDERLYING_NAMESPACES = 0x1D
    PORTS = 0x1E
    INDEPENDENT_ALLOCATED_NAMESPACE = 0x1F
    SUPPORTED_CONTROLLER_STATE_FORMATS = 0x20


class LogPage(IntEnum):
    """Log page identifiers (Base 5.16.1)."""

    SUPPORTED_LOG_PAGES = 0x00
    ERROR_INFORMATION = 0x01
    SMART_HEALTH = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMANDS_SUPPORTED_AND_EFFECTS = 0x05
    DEVICE_SELF_TEST = 0x06
    TELEMETRY_HOST = 0x07
    TELEMETRY_CONTROLLER = 0x08
    ENDURANCE_GROUP = 0x09
    PREDICTABLE_LATENCY_PER_NVM_SET = 0x0A
    PREDICTABLE_LATENCY_EVENT_AGGREGATE = 0x0B
    ANA = 0x0C
    PERSISTENT_EVENT = 0x0D
    LBA_STATUS = 0x0E
    ENDURANCE_GROUP_EVENT_AGGREGATE = 0x0F
    MEDIA_UNIT_STATUS = 0x10
    SUPPORTED_CAPACITY_CONFIGURATIONS = 0x11
    FEATURES_SUPPORTED_AND_EFFECTS = 0x12
    NVME_MI_COMMANDS_SUPPORTED_AND_EFFECTS = 0x13
    COMMAND_AND_FEATURE_LOCKDOWN = 0x14
    BOOT_PARTITION = 0x15
    ROTATIONAL_MEDIA_INFORMATION = 0x16
    DISPERSED_NAMESPACE_PARTICIPATING_SUBSYSTEMS = 0x17
    MANAGEMENT_ADDRESS_LIST = 0x18
    PHYSICAL_INTERFACE_RECEIVER_EYE_OPENING = 0x19
    REACHABILITY_GROUPS = 0x1A
    REACHABILITY_ASSOCIATIONS = 0x1B
    CHANGED_ALLOCATED_NAMESPACES = 0x1C
    FDP_CONFIGURATIONS = 0x20
    FDP_RUH_USAGE = 0x21
    FDP_STATISTICS = 0x22
    FDP_EVENTS = 0x23
    DISCOVERY = 0x70
    HOST_DISCOVERY = 0x71
    AVE_DISCOVERY = 0x72
    PULL_MODEL_DDC_REQUEST = 0x73
    RESERVATION_NOTIFICATION = 0x80
    SANITIZE_STATUS = 0x81
    CHANGED_ZONES = 0xBF


class Feature(IntEnum):
    """Feature identifiers (Base 5.27.1)."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    LBA_RANGE_TYPE = 0x03
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR_CONFIGURATION = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    AUTONOMOUS_POWER_STATE_TRANSITION = 0x0C
    HOST_MEMORY_BUFFER = 0x0D
    TIMESTAMP = 0x0E
    KEEP_ALIVE_TIMER = 0x0F
    HOST_CONTROLLED_THERMAL_MANAGEMENT = 0x10
    NON_OPERATIONAL_POWER_STATE = 0x11
    READ_RECOVERY_LEVEL = 0x12
    PREDICTABLE_LATENCY_MODE = 0x13
    PREDICTABLE_LATENCY_WINDOW = 0x14
    LBA_STATUS_INTERVAL = 0x15
    HOST_BEHAVIOR = 0x16
    SANITIZE_CONFIGURATION = 0x17
    ENDURANCE_GROUP_EVENTS = 0x18
    COMMAND_SET_PROFILE = 0x19
    SPINUP_CONTROL = 0x1A
    POWER_LOSS_SIGNALING = 0x1B
    PERFORMANCE_CHARACTERISTICS = 0x1C
    FLEXIBLE_DATA_PLACEMENT = 0x1D
    FDP_EVENTS = 0x1E
    NAMESPACE_ADMIN_LABEL = 0x1F
    KEY_VALUE_CONFIGURATION = 0x20
    CONTROLLER_DATA_QUEUE = 0x21
    EMBEDDED_MANAGEMENT_CONTROLLER_ADDRESS = 0x78
    HOST_MANAGEMENT_AGENT_ADDRESS = 0x79
    ENHANCED_CONTROLLER_METADATA = 0x7D
    CONTROLLER_METADATA = 0x7E
    NAMESPACE_METADATA = 0x7F
    SOFTWARE_PROGRESS_MARKER = 0x80
    HOST_IDENTIFIER = 0x81
    RESERVATION_NOTIFICATION_MASK = 0x82
    RESERVATION_PERSISTENCE = 0x83
    NAMESPACE_WRITE_PROTECTION = 0x84
    BOOT_PARTITION_WRITE_PROTECTION = 0x85


class FeatureSelect(IntEnum):
    """Which value Get Features returns (Base 5.15)."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    CAPABILITIES = 3


class SecureErase(IntEnum):
    """Format NVM, SES (Base 5.14)."""

    NONE = 0
    USER_DATA = 1
    CRYPTOGRAPHIC = 2


class NamespaceManagementAction(IntEnum):
    """Namespace Management, SEL (Base 5.23)."""

    CREATE = 0
    DELETE = 1


class NamespaceAttachmentAction(IntEnum):
    """Namespace Attachment, SEL (Base 5.22)."""

    ATTACH = 0
    DETACH = 1


class FirmwareCommitAction(IntEnum):
    """Firmware Commit, CA (Base 5.12)."""

    REPLACE = 0
    REPLACE_AND_ACTIVATE = 1
    ACTIVATE = 2
    REPLACE_AND_ACTIVATE_NOW = 3
    REPLACE_BOOT_PARTITION = 6
    ACTIVATE_BOOT_PARTITION = 7


class SanitizeAction(IntEnum):
    """Sanitize, SANACT (Base 5.24)."""

    EXIT_FAILURE_MODE = 1
    BLOCK_ERASE = 2
    OVERWRITE = 3
    CRYPTO_ERASE = 4


class SelfTest(IntEnum):
    """Device Self-test, STC (Base 5.9)."""

    SHORT = 0x1
    EXTENDED = 0x2
    VENDOR_SPECIFIC = 0xE
    ABORT = 0xF


class DirectiveType(IntEnum):
    """Directive types (Base 2.1, 8.1.8)."""

    IDENTIFY = 0
    STREAMS = 1
    DATA_PLACEMENT = 2


class IdentifyReceive(IntEnum):
    """Operations of the Identify directive in Directive Receive (Base 2.1, 8.1.8.2)."""

    RETURN_PARAMETERS = 0x01


class IdentifySend(IntEnum):
    """Operations of the Identify directive in Directive Send (Base 2.1, 8.1.8.2)."""

    ENABLE = 0x01


class StreamsReceive(IntEnum):
    """Operations of the Streams directive in Directive Receive (Base 2.1, 8.1.8.3)."""

    RETURN_PARAMETERS = 0x01
    GET_STATUS = 0x02
    ALLOCATE_RESOURCES = 0x03


class StreamsSend(IntEnum):
    """Operations of the Streams directive in Directive Send (Base 2.1, 8.1.8.3)."""

    RELEASE_IDENTIFIER = 0x01
    RELEASE_RESOURCES = 0x02


class IoManagementOperation(IntEnum):
    """I/O Management Receive and Send, MO (Base 2.1, 7.3 and 7.4)."""

    NONE = 0x00
    RUH_STATUS = 0x01
    """Receive: status of reclaim unit handles. Send: update them, to new reclaim units."""


class CopyFormat(IntEnum):
    """Copy, descriptor formats (NVM 1.1, 3.3.2). 1 and 3 are for protection information with
    storage tags or more than 16 bits of guard; 2 and 3 name the source's namespace.
    """

    SOURCE = 0
    SOURCE_EXTENDED_PI = 1
    NAMESPACE = 2
    NAMESPACE_EXTENDED_PI = 3


class VirtualizationAction(IntEnum):
    """Virtualization Management, ACT (Base 5.28)."""

    PRIMARY_FLEXIBLE_ALLOCATION = 1
    SECONDARY_OFFLINE = 7
    SECONDARY_ASSIGN = 8
    SECONDARY_ONLINE = 9


class CapacityOperation(IntEnum):
    """Capacity Management, OPER (Base 2.1, 5.1.3)."""

    SELECT_CONFIGURATION = 0
    CREATE_ENDURANCE_GROUP = 1
    DELETE_ENDURANCE_GROUP = 2
    CREATE_NVM_SET = 3
    DELETE_NVM_SET = 4


class LbaStatusAction(IntEnum):
    """Get LBA Status, ATYPE (NVM 4.2.1)."""

    SCAN_UNTRACKED_AND_RETURN_BOTH = 0x10
    RETURN_TRACKED = 0x11


class DsmAttribute(IntFlag):
    """Dataset Management, command dword 11 (NVM 3.2.3)."""

    INTEGRAL_READ = 1 << 0
    INTEGRAL_WRITE = 1 << 1
    DEALLOCATE = 1 << 2


class ReservationType(IntEnum):
    """Who may do what under a reservation (Base 7.2, 8.19)."""

    NONE = 0
    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 2
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 3
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 4
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 5
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 6


class ReservationRegisterAction(IntEnum):
    """Reservation Register, RREGA (Base 7.3)."""

    REGISTER = 0
    UNREGISTER = 1
    REPLACE = 2


class ReservationAcquireAction(IntEnum):
    """Reservation Acquire, RACQA (Base 7.2)."""

    ACQUIRE = 0
    PREEMPT = 1
    PREEMPT_AND_ABORT = 2


class ReservationReleaseAction(IntEnum):
    """Reservation Release, RRELA (Base 7.4)."""

    RELEASE = 0
    CLEAR = 1


class PersistThroughPowerLoss(IntEnum):
    """Reservation Register, CPTPL: change of the persist through power loss state (Base 7.3)."""

    NO_CHANGE = 0
    CLEAR = 2
    SET = 3


class ZoneSendAction(IntEnum):
    """Zone Management Send, ZSA (ZNS 3.4.3)."""

    CLOSE = 0x01
    FINISH = 0x02
    OPEN = 0x03
    RESET = 0x04
    OFFLINE = 0x05
    SET_DESCRIPTOR_EXTENSION = 0x10
    FLUSH_ZRWA = 0x11


class ZoneReceiveAction(IntEnum):
    """Zone Management Receive, ZRA (ZNS 3.4.2)."""

    REPORT = 0x00
    EXTENDED_REPORT = 0x01


class ZoneReportOption(IntEnum):
    """Zone Management Receive, which zones a report lists (ZNS 3.4.2)."""

    ALL = 0x0
    EMPTY = 0x1
    IMPLICITLY_OPENED = 0x2
    EXPLICITLY_OPENED = 0x3
    CLOSED = 0x4
    FULL = 0x5
    READ_ONLY = 0x6
    OFFLINE = 0x7


_ACRONYMS = {
    "Io": "I/O",
    "Sq": "Submission Queue",
    "Cq": "Completion Queue",
    "Lba": "LBA",
    "Nvm": "NVM",
    "Nvme": "NVMe",
    "Mi": "MI",
    "Async": "Asynchronous",
}


def command_name(opcode: int, *, admin: bool) -> str:
    """The specification's name of a command, such as "Create I/O Submission Queue"; the opcode if
    there is none.
    """
    enums: tuple[type[IntEnum], ...] = (AdminOpcode,) if admin else (NvmOpcode, ZnsOpcode)
    for enum in enums:
        if opcode in enum._value2member_map_:
            return " ".join(_ACRONYMS.get(word, word) for word in enum(opcode).name.title().split("_"))
    vendor = "vendor specific " if opcode >= (0xC0 if admin else 0x80) else ""
    return f"{vendor}{'admin' if admin else 'I/O'} command {opcode:#04x}"
