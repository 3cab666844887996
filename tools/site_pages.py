"""Hooks of mkdocs: pages of the repository that lie outside docs/, and links from page to page and to files.

Pages are written to be read in the repository, where `../CONTRIBUTING.md` and `../src/nextrl/errors.py` are right.
On the site the first is a page of its own; the second is looked up in the repository's place on the web, which
pyproject.toml names. A link to something that is not there fails the build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Pages outside docs/: their place in the repository -> their place on the site. Other studies have their page in docs/.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "studies/README.md": "studies/index.md",
    **{
        f"studies/{page.parent.name}/README.md": f"studies/{page.parent.name}.md"
        for page in sorted(ROOT.glob("studies/*/README.md"))
    },
}
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def repository() -> str:
    """The repository's place on the web, as pyproject.toml has it."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository = "(.*)"$', project, re.MULTILINE)  # tomllib is not in Python 3.10
    assert found, "pyproject.toml names no Repository"
    return found[1]


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn every link that is right in the repository into one that is right on the site."""
    here = {site: source for source, site in PAGES.items()}.get(
        page.file.src_uri, f"docs/{page.file.src_uri}"
    )
    parts, last = [], 0
    for fence in _FENCE.finditer(markdown):  # code is no link
        parts += [_relinked(markdown[last : fence.start()], here, page.file.src_uri), fence.group()]
        last = fence.end()
    # A figure and its error stay on one line, on a phone, too.
    return "".join([*parts, _relinked(markdown[last:], here, page.file.src_uri)]).replace(
        " ± ", "\u00a0±\u00a0"
    )


def _relinked(text: str, here: str, page: str) -> str:
    return _LINK.sub(lambda match: moved(match[1], here, page), text)


def moved(link: str, here: str, page: str) -> str:
    """A link on the page that lies at `here` in the repository and at `page` on the site.

    Raises:
        PluginError: there is nothing at its end.
    """
    if "://" in link or link.startswith(("#", "mailto:")):
        return link
    path, _, anchor = link.partition("#")
    target = os.path.normpath(PurePosixPath(here).parent / path).replace(os.sep, "/")
    if not (ROOT / target).exists():
        raise PluginError(f"{here}: the link {link} leads to nothing")
    anchor = f"#{anchor}" if anchor else ""
    if target in PAGES or (target.startswith("docs/") and not target.endswith(".py")):
        site = PAGES.get(target, target.removeprefix("docs/"))
        return os.path.relpath(site, PurePosixPath(page).parent).replace(os.sep, "/") + anchor
    return f"{repository()}/blob/main/{target}{anchor}"
