"""For mkdocs: links from a page to files outside of docs/ lead to the source repository, if its
address is known (NVME_ASYNC_SOURCE_URL); otherwise their text stays.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    base = posixpath.dirname(page.file.src_uri)

    def absolute(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", base, match["target"]))
        if target.startswith("docs/"):
            return match[0]
        if not config["repo_url"]:
            return match["text"]
        kind = "tree" if (DOCS.parent / target).is_dir() else "blob"
        return f"[{match['text']}]({config['repo_url'].rstrip('/')}/{kind}/main/{target})"

    return re.sub(r"(?<!!)\[(?P<text>[^\[\]]*)\]\((?!https?:|#)(?P<target>[^)\s]+)\)", absolute, markdown)
