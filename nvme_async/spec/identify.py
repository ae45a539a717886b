"""Identify data structures (Base 5.17, NVM 4.1.5, ZNS 4.1.5).

Names and values are the specification's; `decode` takes the 4096 bytes of the command's buffer,
`encode` gives them back (reserved bytes zero). Which structure comes with which CNS value:

    00h 11h  IdentifyNamespace                      08h      IdentifyNamespaceIndependent
    01h      IdentifyController                     12h 13h  decode_controller_list
    02h 07h  decode_namespace_list (also 10h, 1Ah)  14h      PrimaryControllerCapabilities
    03h      NamespaceDescriptors                   15h      decode_secondary_controllers
    04h      decode_nvm_sets                        16h      NamespaceGranularityList
    05h 1Bh  IdentifyNamespaceNvm, in `zns` IdentifyNamespaceZns
    06h      IdentifyControllerNvm, IdentifyControllerZns
    17h      decode_uuid_list                       18h      decode_domains
    19h      decode_endurance_groups                1Ch      CommandSets
"""

from __future__ import annotations

from nvme_async.spec._identify_controller import (
    Ctratt,
    Fuses,
    IdentifyController,
    IdentifyControllerNvm,
    IdentifyControllerZns,
    Lpa,
    Oacs,
    Oaes,
    Oncs,
    PrimaryControllerCapabilities,
    SecondaryController,
    Sgls,
)
from nvme_async.spec._identify_lists import (
    CommandSets,
    Domain,
    IdentifierType,
    NamespaceDescriptors,
    NamespaceGranularity,
    NamespaceGranularityList,
    NvmSet,
    decode_controller_list,
    decode_domains,
    decode_endurance_groups,
    decode_namespace_list,
    decode_nvm_sets,
    decode_secondary_controllers,
    decode_uuid_list,
    encode_controller_list,
    encode_namespace_list,
)
from nvme_async.spec._identify_namespace import (
    IdentifyNamespace,
    IdentifyNamespaceIndependent,
    IdentifyNamespaceNvm,
    LbaFormat,
    Nsfeat,
    ProtectionType,
)
from nvme_async.spec._power_state import PowerState

__all__ = [
    "CommandSets",
    "Ctratt",
    "Domain",
    "Fuses",
    "IdentifierType",
    "IdentifyController",
    "IdentifyControllerNvm",
    "IdentifyControllerZns",
    "IdentifyNamespace",
    "IdentifyNamespaceIndependent",
    "IdentifyNamespaceNvm",
    "LbaFormat",
    "Lpa",
    "NamespaceDescriptors",
    "NamespaceGranularity",
    "NamespaceGranularityList",
    "Nsfeat",
    "NvmSet",
    "Oacs",
    "Oaes",
    "Oncs",
    "PowerState",
    "PrimaryControllerCapabilities",
    "ProtectionType",
    "SecondaryController",
    "Sgls",
    "decode_controller_list",
    "decode_domains",
    "decode_endurance_groups",
    "decode_namespace_list",
    "decode_nvm_sets",
    "decode_secondary_controllers",
    "decode_uuid_list",
    "encode_controller_list",
    "encode_namespace_list",
]
