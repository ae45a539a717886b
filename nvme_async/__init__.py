"""nvme_async: an asyncio-native, usermode NVMe driver with a native hot path."""

from __future__ import annotations

from nvme_async.errors import *  # noqa: F403
