"""Hooks of the documentation site: files of the repository that pages link to are copied into it.

Pages link to `../examples/x.py` and the like, so that the links work in the repository too; in the site these files
stand under `repository/`. The page `contributing.md` is `CONTRIBUTING.md`.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(
    r"\]\(((?:\.\./)+)((?:examples|benchmarks|configs|scripts|src|tests|README\.md|CITATION\.cff)[^)#]*)([^)]*)\)"
)


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Returns the page with links out of `docs/` turned into links below `repository/`."""
    if page.file.src_uri == "contributing.md":
        markdown = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
    depth = page.file.src_uri.count("/")

    def inside(match: re.Match[str]) -> str:
        up, path, anchor = match.groups()
        if up.count("../") != depth + 1:
            return match[0]
        return f"]({'../' * depth}{_copied(path, config, files)}{anchor})"

    return LINK.sub(inside, markdown)


def _copied(path: str, config: Any, files: Files) -> str:
    """The place of a file in the site; of a folder, a page that lists its files."""
    source = ROOT / path
    target = f"repository/{path.strip('/')}" + (".txt" if source.is_dir() or source.suffix == ".md" else "")
    if files.get_file_from_path(target) is None:
        listing = "".join(f"{file.name}\n" for file in sorted(source.iterdir())) if source.is_dir() else None
        content = listing if listing is not None else source.read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=content))
    return target
