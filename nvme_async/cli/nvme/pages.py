"""All commands that read one page and show it, by name."""

from __future__ import annotations

from nvme_async.cli.nvme import pages_identify, pages_logs, pages_rare
from nvme_async.cli.nvme.page import Page

PAGES: dict[str, Page] = {**pages_identify.PAGES, **pages_logs.PAGES, **pages_rare.PAGES}
