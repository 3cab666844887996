"""The page: complete on a full result, quiet about what a partial one lacks, and never reaching outside itself."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

import pytest

from nextrl.errors import InputError
from nextrl.judge.regime import MEANING, OSCILLATES, SIGNAL
from nextrl.runs import report
from nextrl.runs.report.arms import read_arms, tuned_arm
from nextrl.runs.report.charts import chart_data, embed
from nextrl.runs.report.rows import comparison, count, decisions, fixed, lengths, percent, single_tiles, tiles
from nextrl.runs.result import parse_result
from synthetic_result import synthetic_result


def render(value: dict[str, Any]) -> str:
    """The page of what a file holds."""
    return report.render(parse_result(value))


def write_report(value: dict[str, Any], folder: Path) -> Path:
    """The page of what a file holds, written."""
    return report.write_report(parse_result(value), folder)


class Page(HTMLParser):
    """Every tag's attributes, and the text of the embedded data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data, self._inside = "", False
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script" and dict(attrs).get("id") == "data"

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data
        self.words.append(data)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return synthetic_result()


@pytest.fixture(scope="module")
def page(result: dict[str, Any]) -> str:
    return render(result)


def test_the_page_is_small_and_reaches_nowhere(page: str) -> None:
    assert len(page.encode()) < 400_000
    assert not re.search(r"https?:", page)
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|\bimport\(", page)
    for tag, attributes in Page(page).tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, name)
    assert "default-src 'none'" in page


def test_a_link_in_the_result_stays_text(result: dict[str, Any]) -> None:
    page = render({**result, "config": {"model": "https://example.org/x"}})
    for _, attributes in Page(page).tags:
        assert not any("example.org" in (value or "") for value in attributes.values())


def test_every_arm_the_verdict_and_the_provenance_are_there(page: str, result: dict[str, Any]) -> None:
    words = " ".join(" ".join(Page(page).words).split())
    for arm in result["arms"].values():
        assert arm["label"] in words
    for part in result["verdict"].split(". "):
        assert part.rstrip(".") in words
    for word in (
        "seed",
        "sha256 of the result",
        "plain.learning_rate",
        "raise the learning rate",
        "not reached",
    ):
        assert word in words


def test_no_markup_gets_in_from_the_result(result: dict[str, Any]) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    bad = json.loads(json.dumps(result))
    bad["verdict"] = bad["task"] = bad["arms"]["auto"]["label"] = bad["leaps"]["auto"][0]["reason"] = evil
    bad["arms"][evil] = bad["arms"]["next"]
    bad["config"][evil] = evil
    plain, attacked = Page(render(result)), Page(render(bad))
    assert [t for t, _ in attacked.tags if t in ("script", "img")] == [
        t for t, _ in plain.tags if t in ("script", "img")
    ]
    assert evil in json.loads(attacked.data)["arms"][1]["label"]


def test_the_same_result_gives_the_same_bytes(result: dict[str, Any], tmp_path: Path) -> None:
    first = write_report(result, tmp_path / "new" / "a").read_bytes()
    second = write_report(json.loads(json.dumps(result)), tmp_path / "b").read_bytes()
    assert first == second
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    "key", ["target", "saved", "after", "costs", "leaps", "reach", "trajectory", "config", "seed", "tuned"]
)
@pytest.mark.parametrize("value", ["missing", None, [], {}, "text", math.nan])
def test_a_missing_or_odd_key_is_left_out(result: dict[str, Any], key: str, value: Any) -> None:
    partial = {k: v for k, v in result.items() if k != key}
    if value != "missing":
        partial[key] = value
    page = render(partial)
    json.loads(Page(page).data)
    assert "NaN" not in Page(page).data


def test_nulls_and_ragged_lists_inside_an_arm() -> None:
    arm = {
        "kind": "novel",
        "steps": [0, None, 20, "x"],
        "accuracy": [0.1, 0.2, math.inf],
        "se": None,
        "greedy": [True],
    }
    (read,) = read_arms(parse_result({"arms": {"odd": arm}}))
    assert (read.steps, read.accuracy, read.se, read.greedy) == (
        [0, 20],
        [0.1, None],
        [None, None],
        [None, None],
    )
    assert (read.group, read.label) == ("other", "odd")
    render({"arms": {"odd": arm, "empty": {}, "null": None}})


@pytest.mark.parametrize("bad", [{}, {"arms": {}}, {"arms": None}, {"arms": []}])
def test_no_arms_is_bad_input(bad: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no arms"):
        write_report(bad, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(result, tmp_path / "file")


def test_key_arms_are_the_ones_that_answer_the_question(result: dict[str, Any]) -> None:
    arms = read_arms(parse_result(result))
    assert {a.name for a in arms if a.key} == {
        "plain",
        "auto",
        "lr-1e-3",
        "rule",
        "prodigy-schedulefree",
        "mechanic",
        "next",
    }
    assert [a.group for a in arms] == sorted(
        (a.group for a in arms), key=["plain", "auto", "control", "leap"].index
    )
    assert len({(a.role, a.dash) for a in arms if a.role == "leap"}) == 7
    ends = {"lr-1": {"accuracy": [0.5]}, "lr-2": {"accuracy": [0.7, None]}, "x": {"accuracy": [1]}}
    assert tuned_arm(parse_result({"arms": ends})) == "lr-2"


def test_greedy_error_is_binomial_in_the_prompts_the_config_names(result: dict[str, Any]) -> None:
    auto = next(a for a in read_arms(parse_result(result)) if a.name == "auto")
    g = auto.greedy[0]
    assert g is not None
    assert auto.greedy_se[0] == pytest.approx(math.sqrt(g * (1 - g) / 1024))
    bare = read_arms(parse_result({"arms": {"auto": {"kind": "auto", "steps": [0], "greedy": [0.5]}}}))
    assert bare[0].greedy_se == [None]


def test_the_table_and_the_tiles_say_what_the_result_says(result: dict[str, Any]) -> None:
    arms = read_arms(parse_result(result))
    rows = {row.label: row for _, group in comparison(parse_result(result), arms) for row in group}
    auto = rows["auto, from lr 5e-5"]
    assert auto.cells[5] == count(result["reach"]["auto"]["steps"])
    assert auto.cells[3] == percent(result["saved"]["auto"]["completions"])
    assert rows["linear, one leap at 200"].cells[5] == "not reached"
    assert rows["plain, lr 1e-3"].tag == "tuned"
    assert rows["tuned rate, whole sweep charged"].cells[3] == "59 %"
    assert {len(row.cells) for row in rows.values()} == {11}
    shown = tiles(parse_result(result), arms)
    assert [tile.role for tile in shown] == ["auto", "tuned", "free"]
    assert shown[0].figure == f"{percent(result['saved']['auto']['completions'])} saved"
    lost = {**result, "saved": {"auto": {"completions": -0.25}}}
    assert tiles(parse_result(lost), arms)[0].figure == "25 % more"


def test_an_arm_that_saved_nothing_is_better_than_one_that_never_got_there(result: dict[str, Any]) -> None:
    free = [arm for arm in read_arms(parse_result(result)) if arm.role == "free"]
    assert len(free) == 2
    for there, never in (free, free[::-1]):
        saved = {there.name: {"completions": 0.0}, never.name: {"completions": None}}
        told = tiles(parse_result({**result, "saved": saved}), free)[-1]
        assert told.note.endswith(there.label)


def test_numbers_as_shown() -> None:
    assert (fixed(-0.0126), fixed(None), fixed(True), percent(-0.12), count(51200)) == (
        "−0.013",
        "–",
        "–",
        "−12 %",
        "51\u202f200",
    )


def test_chart_data_carries_candidates_and_windows(result: dict[str, Any]) -> None:
    data = chart_data(parse_result(result), read_arms(parse_result(result)))
    assert data["leaps"]["auto"][0]["scores"] == [["0", 0.36], ["8", 0.48], ["32", 0.64], ["128", 0.02]]
    assert [s["window"] for s in data["persistence"]] == ["10", "20", "50"]
    assert data["persistence"][0]["zero"] == pytest.approx(0.5247)
    assert data["excess"][0]["zero"] == 0.0
    assert len(data["sigma"]["modules"]) == 14
    assert len({role for _, role in data["sigma"]["kinds"]}) == 7
    assert "<" not in embed({"x": "</script>"})


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to check the script's grammar")
def test_the_script_is_valid_javascript(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "src" / "nextrl" / "runs" / "report" / "templates"
    script = tmp_path / "all.js"
    script.write_text("".join((folder / name).read_text() for name in ("chart.js", "report.js")))
    subprocess.run(["node", "--check", str(script)], check=True)


_BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


def _no_browser(why: str) -> NoReturn:
    """Skip; where the browser was installed for this test (`.ci/run`), fail."""
    if os.environ.get("NEXTRL_BROWSER") == "required":
        pytest.fail(why)
    pytest.skip(why)


@pytest.mark.skipif(_BROWSER is None, reason="no headless browser to draw the page")
@pytest.mark.parametrize("case", ["full", "bare"])
def test_a_browser_draws_every_chart(result: dict[str, Any], tmp_path: Path, case: str) -> None:
    bare = {
        "arms": {
            "plain": {"kind": "plain", "steps": [0, 10]},
            "auto": {"kind": "auto", "steps": [10], "accuracy": [0.5]},
        }
    }
    page = write_report(result if case == "full" else bare, tmp_path)
    command = [
        str(_BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-sync",
    ]
    command += [
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        page.as_uri(),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    except subprocess.TimeoutExpired:
        _no_browser("the browser takes too long here")
    if done.returncode or "<html" not in done.stdout:
        _no_browser("the browser does not start here")
    drawn = re.findall(r'<div class="chart" id="([\w-]+)"><svg', done.stdout)
    everything = [
        "by-steps",
        "by-completions",
        "by-seconds",
        "rates",
        "leaps",
        "persistence",
        "excess",
        "sigma",
    ]
    assert drawn == (everything if case == "full" else everything[:3])
    assert 'class="chip auto" type="button" aria-pressed="true"' in done.stdout
    axes = ["sampled accuracy"] * 3
    if case == "full":
        axes += [
            "learning rate",
            "cosine of successive windows",
            "excess over Adam's memory",
            "top singular value",
        ]
    assert re.findall(r"<text [^>]*rotate[^>]*>([^<]+)</text>", done.stdout) == axes
    assert ("layer 1</span>" in done.stdout) == (case == "full")
    if case == "full":  # a rate that a decision set is drawn from the decision's step on
        rates = done.stdout[done.stdout.index('id="rates"') : done.stdout.index('id="leaps"')]
        drawn = re.findall(r'<path class="curve" d="([^"]*)"[^>]*var\(--c-auto\)', rates)
        wanted = len(result["arms"]["auto"]["steps"]) + len(result["leaps"]["auto"])
        assert [len(re.findall("[MH]", path)) for path in drawn] == [wanted]
        # The decisions stand under the rates, on the same axis.
        leaps = done.stdout[done.stdout.index('id="leaps"') : done.stdout.index("The comparison")]
        steps = [re.findall(r"<text [^>]*>(\d+)</text>", chart) for chart in (rates, leaps)]
        assert all(str(max(result["arms"]["plain"]["steps"])) in shown for shown in steps)
        assert "base, greedy" in done.stdout


def one_run() -> dict[str, Any]:
    """What `nextrl run` writes: one arm, nothing beside it."""
    whole = synthetic_result()
    return {
        "task": "chain",
        "seed": 0,
        "target": None,
        "arms": {"run": whole["arms"]["auto"]},
        "saved": {"run": {"steps": None, "completions": None, "seconds": None}},
        "leaps": {"run": whole["leaps"]["auto"]},
        "costs": {"run": whole["costs"]["auto"]},
        "trajectory": whole["trajectory"],
        "regime": None,
        "verdict": "The run went on.",
    }


def test_a_single_run_has_its_evaluations_and_no_empty_comparison() -> None:
    page = render(one_run())
    words = " ".join(" ".join(Page(page).words).split())
    assert "Every evaluation" in words
    assert "Leaps taken" in words
    for absent in ("The comparison", "Target:", "not reached", "run as configured", "Regime"):
        assert absent not in words.replace(Page(page).data, "")
    arm = one_run()["arms"]["run"]
    assert page.count('<tr><th scope="row">') >= len(arm["steps"])
    assert f"{arm['accuracy'][-1]:.3f}" in words


def test_the_page_quotes_regimes_instead_of_numbers_of_its_own(result: dict[str, Any]) -> None:
    page = render(result)
    assert f"({MEANING['signal']})" in html.unescape(page)
    for number in (OSCILLATES, SIGNAL):
        assert f"{number:g}".replace("-", "−") in page
    assert json.loads(Page(page).data)["guides"] == [SIGNAL, OSCILLATES]


def test_an_arm_with_a_lost_target_still_compares(result: dict[str, Any]) -> None:
    assert "The comparison" in render({**result, "target": None})


def test_only_arms_that_leap_have_an_accuracy_after_the_leap(result: dict[str, Any]) -> None:
    arms = read_arms(parse_result(result))
    filled = {
        row.label
        for _, group in comparison(parse_result(result), arms)
        for row in group
        if any(cell != "–" for cell in row.cells[8:])
    }
    assert filled == {arm.label for arm in arms if arm.group == "leap"}
    assert "At the step of the single leaps the run as configured stood at" in render(result)


def test_no_rate_free_arm_is_drawn_like_the_tuned_rate(result: dict[str, Any]) -> None:
    arms = read_arms(parse_result(result))
    assert {arm.dash for arm in arms if arm.role == "tuned"} == {""}
    assert "" not in {arm.dash for arm in arms if arm.role == "free"}


def test_auto_is_said_to_search_only_where_it_did(result: dict[str, Any]) -> None:
    def note(spent: int) -> str:
        costs = {"auto": {**result["costs"]["auto"], "search_completions": spent}}
        parsed = parse_result({**result, "costs": costs})
        return tiles(parsed, read_arms(parsed))[0].note

    assert note(0).endswith("it searches no completions")
    assert note(1536).endswith("its search of 1\u202f536 completions charged")


def test_the_page_says_why_the_arms_end_at_different_steps(result: dict[str, Any]) -> None:
    arms = read_arms(parse_result(result))
    assert lengths(arms).startswith("The run as configured is trained for 400 steps")
    words = " ".join(" ".join(Page(render(result)).words).split())
    assert lengths(arms) in words
    assert lengths([arm for arm in arms if arm.role != "auto"]) == ""


def auto_run() -> dict[str, Any]:
    """What `nextrl run` writes of `auto`: the rate raised, a step taken back, and the rate cooled at the end."""
    decided = [
        {"step": 1, "alpha": 0.0, "learning_rate": 2e-3, "rate_factor": 40.0, "reason": "too little"},
        {
            "step": 2,
            "alpha": -1.0,
            "learning_rate": 1e-3,
            "rate_factor": 0.5,
            "back": "step",
            "reason": "too far",
        },
        {
            "step": 10,
            "alpha": 0.0,
            "learning_rate": 1e-3,
            "rate_factor": 1.0,
            "reason": "nothing speaks for another",
        },
    ]
    whole = one_run()
    arm = {
        **whole["arms"]["run"],
        "steps": [0, 10, 20],
        "learning_rate": [5e-5, 1e-3, 2e-4],
        "rate_steps": [1, 2, 3, 17, 18, 19, 20],
        "rates": [5e-5, 2e-3, 1e-3, 8e-4, 6e-4, 4e-4, 2e-4],
    }
    for leap in decided:
        leap["accepted"] = leap["alpha"] != 0.0
    return {
        **whole,
        "arms": {"run": arm},
        "leaps": {"run": decided},
        "costs": {"run": {"search_seconds": 1.0}},
    }


def test_the_rate_is_drawn_from_the_steps_that_were_taken_at_it() -> None:
    parsed = parse_result(auto_run())
    (arm,) = read_arms(parsed)
    assert arm.rate_path == [
        (0, 5e-5), (1, 2e-3), (2, 1e-3), (16, 8e-4), (17, 6e-4), (18, 4e-4), (19, 2e-4), (20, 2e-4)
    ]  # fmt: skip
    old = auto_run()
    del old["arms"]["run"]["rate_steps"], old["arms"]["run"]["rates"]
    (arm,) = read_arms(parse_result(old))
    assert arm.rate_path == [(0, 5e-5), (1, 2e-3), (2, 1e-3), (10, 1e-3), (10, 1e-3), (20, 2e-4)]


def test_a_tile_says_the_rate_that_auto_came_to() -> None:
    def note(value: dict[str, Any]) -> tuple[str, str]:
        parsed = parse_result(value)
        tile = single_tiles(parsed, read_arms(parsed)[0])[-1]
        return tile.figure, tile.note

    figure, told = note(auto_run())
    assert figure == "0.001"
    assert told.startswith(
        "before the end of the run cooled it to 0.0002; 5e-05 at the start; highest at 0.002 from step 1"
    )
    bare = auto_run()
    bare["arms"]["run"] |= {"learning_rate": [], "rate_steps": [], "rates": []}
    assert note({**bare, "leaps": {}})[0] == "–"


def test_the_tile_of_a_run_has_its_greedy_accuracy_beside_the_sampled_one() -> None:
    run = one_run()
    arm = run["arms"]["run"]
    tile = single_tiles(parse_result(run), read_arms(parse_result(run))[0])[0]
    assert tile.note.endswith(f"greedy {arm['greedy'][-1]:.3f}, and {arm['greedy'][0]:.3f} at the start")
    del arm["greedy"]
    tile = single_tiles(parse_result(run), read_arms(parse_result(run))[0])[0]
    assert tile.note == f"at the end; {arm['accuracy'][0]:.3f} at the start"


def test_a_score_is_not_divided_from_its_alpha(result: dict[str, Any]) -> None:
    columns, found = decisions(parse_result(result), read_arms(parse_result(result)))
    scores = found[0].cells[columns.index("alpha: score on validation prompts")]
    assert scores.split(" ") == ["0:\u00a00.360,", "8:\u00a00.480,", "32:\u00a00.640,", "128:\u00a00.020"]


def test_every_decision_is_told_by_what_was_done() -> None:
    page = render(auto_run())
    words = " ".join(" ".join(Page(page).words).split())
    assert "Every decision, in words" in words
    for absent in ("taken back", "decision on a leap", "<th>taken</th>"):
        assert (absent in page) == (absent == "taken back")
    columns, found = decisions(parse_result(auto_run()), read_arms(parse_result(auto_run())))
    assert columns == (
        "step",
        "what was done",
        "learning rate after",
        "reason",
    )  # nothing was scored under auto
    assert [row.cells[:2] for row in found] == [
        ("1", "learning rate times 40"), ("2", "the step is taken back"), ("10", "nothing changed")
    ]  # fmt: skip
    drawn = json.loads(Page(page).data)["leaps"]["run"]
    assert [leap["shape"] for leap in drawn] == ["triangle", "cross", None]


def test_an_older_file_s_leaps_are_told_too(result: dict[str, Any]) -> None:
    _, found = decisions(parse_result(result), read_arms(parse_result(result)))
    assert [row.cells[1] for row in found[:3]] == ["leapt, alpha 32", "leapt, alpha 8", "nothing changed"]


def test_the_base_s_greedy_accuracy_stands_beside_the_sampled_one(result: dict[str, Any]) -> None:
    page = render(result)
    assert json.loads(Page(page).data)["base_greedy"] == result["arms"]["plain"]["greedy"][0]
    assert "the base model&#39;s greedy accuracy" in page
    late = {"arms": {"next": {"kind": "leap", "steps": [200], "accuracy": [0.5], "greedy": [0.7]}}}
    assert json.loads(Page(render(late)).data)["base_greedy"] is None
    assert "the base model&#39;s greedy accuracy" not in render(late)


def test_numbers_are_not_divided_at_a_line_s_end() -> None:
    assert report._unbroken("lr 5e-05 (as <b>)") == 'lr <span class="n">5e-05</span> (as &lt;b&gt;)'
    assert report._unbroken("saves 92 %, all") == 'saves <span class="n">92 %,</span> all'


def test_paper_gets_every_column_colour_and_decision(page: str) -> None:
    paper = page[page.index("@media print") :]
    for rule in ("print-color-adjust: exact", "overflow: visible", "details-content", "position: static"):
        assert rule in paper
    assert "beforeprint" in page
    assert "@media screen and (prefers-color-scheme: dark)" in page


def test_the_advice_on_the_page_is_the_result_s_own(result: dict[str, Any]) -> None:
    answer = "No leap; go on as it is. The reward still rises (+0.10 over the last windows): go on."
    page = render({**result, "recommendation": {"answer": answer}})
    assert answer in " ".join(" ".join(Page(page).words).split())
