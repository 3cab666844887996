"""README reads on a package index, too: absolute links, to files that are there; its figures are the records'."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from test_docs_names import anchors

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def repository() -> str:
    found = re.search(
        r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found
    return found[1]


def test_every_link_is_absolute_and_leads_to_something() -> None:
    links = _LINK.findall(README)
    assert len(links) > 15
    for link in links:
        assert link.startswith("https://"), link
        raw = repository().replace("github.com", "raw.githubusercontent.com") + "/main/"
        for place in (f"{repository()}/blob/main/", raw):
            if link.startswith(place):
                file, _, anchor = link.removeprefix(place).partition("#")
                text = (ROOT / file).read_bytes()
                assert not anchor or anchor in anchors(text.decode()), link
                break
        else:
            assert link.startswith("https://arxiv.org/"), link


def _record(path: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((ROOT / "studies" / path).read_text())
    record: dict[str, Any] = data.get("record", data)
    return record


def _at(record: dict[str, Any], step: int, what: str) -> str:
    return f"{record[what][record['steps'].index(step)]:.3f}".lstrip("0")


@pytest.mark.parametrize(
    ("row", "column", "path", "step", "what"),
    [
        (0, 2, "auto/raw/chain-wrong-rule/plain-5e-05/seed-0/record.json", 200, "accuracy"),
        (1, 2, "auto/raw/chain-wrong-rule/plain-5e-05/seed-0/record.json", 200, "greedy"),
        (4, 2, "grid/raw/starts/chain-wrong-rule/default/auto-5e-05/seed-0.json", 200, "accuracy"),
        (0, 3, "smollm2/raw/short-sums/seed-0/plain-1e-5.json", 20, "accuracy"),
        (1, 3, "smollm2/raw/short-sums/seed-0/plain-1e-5.json", 20, "greedy"),
        (2, 3, "smollm2/raw/short-sums/seed-0/plain-3e-4.json", 20, "accuracy"),
    ],
)
def test_the_five_rows_are_those_of_the_published_records(
    row: int, column: int, path: str, step: int, what: str
) -> None:
    begin = README.index("| as configured, cautious rate")
    rows = README[begin : README.index("\n\n", begin)].splitlines()
    assert len(rows) == 5
    cell = rows[row].split("|")[column + 1].strip()
    assert cell == _at(_record(path), step, what)


def test_the_first_minute_has_the_two_commands_and_the_three_lines() -> None:
    assert README.index("make demo") < README.index("make test") < 700
    lines = "import nextrl\n\nnextrl.attach(trainer, every=10)"
    assert README.index(lines) < 3500


def test_the_site_hook_rewrites_links(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import site_pages

    assert site_pages.moved("../CONTRIBUTING.md", "docs/index.md", "index.md") == "contributing.md"
    assert site_pages.moved("../docs/auto.md#x", "studies/README.md", "studies/index.md") == "../auto.md#x"
    assert site_pages.moved("../src/nextrl/errors.py", "docs/design.md", "design.md").startswith(repository())
    with pytest.raises(Exception, match="leads to nothing"):
        site_pages.moved("../nowhere.md", "docs/design.md", "design.md")
