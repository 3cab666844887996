"""Every file, module and link that the documentation names is there."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from nextrl.engines import memory
from nextrl.judge.decision import DecisionRecord
from nextrl.runs.arm import ArmRecord

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for pattern in ("*.md", "docs/**/*.md", "studies/**/*.md") for path in ROOT.glob(pattern))
# Scripts that no other test imports: their own imports, the commands in their docstrings, code in strings.
SCRIPTS = sorted(
    path
    for folder in ("docs", "benchmarks", "examples", "studies")
    for path in ROOT.glob(f"{folder}/**/*.py")
)
# Paths of this repository only: verl's `workers/...` or a user's `runs/...` are not ours.
_PATH = re.compile(r"(?<![\w./-])(?:src|tests|studies|benchmarks|examples|docs)/[\w./*-]*\w")
_MODULE = re.compile(r"(?<![\w./-])(?:nextrl|studies)(?:\.\w+)+")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
_ANCHORED = re.compile(r"\]\(([^)#\s]*)#([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# Files that are called `nextrl.something` and are no modules.
_FILES = {"nextrl.json"}


def missing_paths(text: str) -> list[str]:
    """Paths of this repository in a text, globs included, at which there is nothing."""
    return [path for path in _PATH.findall(text) if not any(ROOT.glob(path))]


def anchors(text: str) -> list[str]:
    """What a link may name after `#` on a page: the slugs of its headings, as GitHub makes them.

    Lower case; what is no letter, digit, space, hyphen or underscore goes; each space becomes a hyphen; what has been
    there before gets a number.
    """
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.*?) *$", _FENCE.sub("", text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # of a link its text
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        again = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.append(f"{slug}-{again}" if again else slug)
    return found


def missing_anchors(text: str, page: Path) -> list[str]:
    """Links of a page to a heading, of a page or of itself, that is not there."""
    found = [(link, anchor) for link, anchor in _ANCHORED.findall(text) if "://" not in link]
    targets = {link: page.parent / link if link else page for link, _ in found}
    return [
        f"{link}#{anchor}"
        for link, anchor in found
        if targets[link].suffix == ".md"
        and anchor not in anchors(targets[link].read_text(encoding="utf-8") if link else text)
    ]


def missing_names(text: str) -> list[str]:
    """Dotted names of this repository in a text that lead to no module, and to nothing in one."""
    found = set(_MODULE.findall(text)) - _FILES
    return sorted(name for name in found if not _leads_somewhere(name))


def _leads_somewhere(name: str) -> bool:
    """Whether the longest beginning of a dotted name that is a module has the rest as attributes."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        if not _is_module(".".join(parts[:count])):
            continue
        if parts[0] == "studies":  # not imported: some of them register methods, which other tests would see
            return count == len(parts)
        value = importlib.import_module(".".join(parts[:count]))
        for attribute in parts[count:]:
            if not hasattr(value, attribute):
                return False
            value = getattr(value, attribute)
        return True
    return False


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what stands before the last dot is no package
        return False


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=_relative)
def test_what_a_page_or_script_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [*missing_paths(text), *missing_names(text)]
    assert not missing, (
        f"{_relative(page)} names {', '.join(missing)}, where there is nothing: correct the page"
    )


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in _LINK.findall(text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()] + missing_anchors(text, page)
    assert not missing, (
        f"{_relative(page)} links to {', '.join(missing)}, where there is nothing: correct the link"
    )


@pytest.mark.parametrize("model", [DecisionRecord, ArmRecord])
def test_the_formats_page_has_every_field(model: type[DecisionRecord | ArmRecord]) -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    missing = [name for name in model.model_fields if f"`{name}`" not in page]
    assert not missing, f"add a row for {', '.join(missing)} of {model.__name__} to docs/formats.md"


def test_the_formats_page_has_the_version_of_a_checkpoint_s_memory() -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    row = f"| `version` | int | {memory.VERSION} |"
    assert row in page, f"bring the row of version in docs/formats.md up to date: {row}"


def test_what_is_missing_is_found() -> None:
    assert missing_paths("`src/nextrl/advise.py`, `tests/engines/*/test_*.py`") == ["src/nextrl/advise.py"]
    assert missing_names("`nextrl.judge.advise.decide`, nextrl.search, `nextrl.judge.advise.x`") == [
        "nextrl.judge.advise.x",
        "nextrl.search",
    ]
    assert missing_names("`python -m studies.auto.table`, `studies.auto.chart.draw`") == [
        "studies.auto.chart.draw"
    ]
    assert missing_paths("verl's workers/src/x.py, runs/studies/a.py") == []


def test_an_anchor_that_is_no_heading_s_is_found() -> None:
    text = "# A, b!\n## (c) 37.5 % of x_y\n## A b\n```\n# no heading\n```\n"
    assert anchors(text) == ["a-b", "c-375--of-x_y", "a-b-1"]
    linked = text + "[one](#a-b), [two](#c-375-of-x_y), [three](#no-heading), [four](https://x.org/y#z)"
    assert missing_anchors(linked, ROOT / "README.md") == ["#c-375-of-x_y", "#no-heading"]
