"""For mkdocs: links from a page to files outside of docs/ lead to the source repository."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    base = posixpath.dirname(page.file.src_uri)

    def absolute(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", base, match[1]))
        if target.startswith("docs/"):
            return match[0]
        kind = "tree" if (DOCS.parent / target).is_dir() else "blob"
        return f"]({config['repo_url']}/{kind}/main/{target})"

    return re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", absolute, markdown)
