"""One run, four verbs, one answer: `advise`, `backtest`, `leap --alpha auto` and the report say the same of it."""

from __future__ import annotations

import functools
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

import synthetic_runs as synthetic
from nextrl.cli import VERBS
from nextrl.cli.advise import advise
from nextrl.cli.backtest import backtest
from nextrl.cli.leap import leap as leap_verb
from nextrl.engines import decision_log
from nextrl.engines.offline import AlphaChoice
from nextrl.engines.settings import TrainSettings
from nextrl.errors import InputError
from nextrl.extrapolators import names, resolve, tags_of
from nextrl.judge.decision import DecisionRecord
from nextrl.leaps.leap import Leap
from nextrl.runs.arm import ArmRecord, ArmSettings
from nextrl.runs.report import render
from nextrl.runs.summary import summarise_run
from nextrl.trajectory.trajectory import Trajectory

REGIMES: dict[str, tuple[synthetic.Path, Callable[[int], float], str]] = {
    "signal": (synthetic.line, lambda t: 0.3 + t / 2000, "leap"),
    "mixed": (synthetic.walk(1.2), synthetic.noisy(lambda t: 0.3), "raise_lr"),
    "still rising": (synthetic.walk(0.5), lambda t: 0.1 + t / 250, "continue"),
    "flat": (synthetic.walk(0.5), synthetic.noisy(lambda t: 0.1 + 0.6 * min(1.0, t / 80)), "average"),
    "fallen": (synthetic.walk(0.5), synthetic.noisy(lambda t: 0.8 if t < 120 else 0.5), "lower_lr"),
    "ruined": (synthetic.line, lambda t: 0.6 if t < 60 else 0.0, "lower_lr"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a regime, written once for every test of this file; they only read it."""
    folder = tmp_path_factory.mktemp("the runs")

    @functools.cache
    def of(name: str) -> Path:
        return synthetic.write(folder / name, *REGIMES[name][:2])

    return of


def call(verb: Callable[..., None], *arguments: str) -> str:
    app = Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.exception
    return result.stdout


def refusal(verb: Callable[..., None], *arguments: str) -> str:
    """The line that a refused call ends in; nothing is on stdout."""
    app = Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})
    assert isinstance(result.exception, InputError), result.output
    assert result.stdout == ""
    return str(result.exception)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def quick_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """The methods that train a network are left out: minutes, and tests/judge asks that none is recommended."""
    quick = [name for name in names() if not tags_of(resolve(name)[0]).trains]
    monkeypatch.setattr("nextrl.judge.backtest.names", lambda: quick)


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> list[Leap]:
    """The search on held-out prompts is replaced: which leap it was asked about is kept."""
    asked: list[Leap] = []

    def search(result: Leap, *_: Any) -> AlphaChoice:
        asked.append(result)
        return AlphaChoice(0.0, f"{result.method}: no candidate beats staying put", {}, 0)

    monkeypatch.setattr("nextrl.cli.leap._search", search)
    return asked


def reported(folder: Path) -> dict[str, Any]:
    """What the result and the page of a plain run with these checkpoints say."""
    settings = ArmSettings(
        name="run", kind="plain", label="plain", train=TrainSettings(steps=160), eval_at=(160,)
    )
    series = {"steps": [0, 160], "accuracy": [0.3, 0.5], "se": [0.01, 0.01], "greedy": [0.4, 0.6]}
    record = ArmRecord(
        name="run",
        kind="plain",
        label="plain",
        completions=[0, 9],
        seconds=[0, 9],
        learning_rate=[1, 1],
        **series,
    )
    result = summarise_run(record, settings, {}, Trajectory.load(folder))
    return result.as_dict() | {"page": render(result)}


@pytest.mark.parametrize("name", REGIMES)
def test_four_verbs_one_answer(
    name: str, runs: Callable[[str], Path], tmp_path: Path, no_search: list[Leap]
) -> None:
    action, run = REGIMES[name][2], str(runs(name))
    advised = json.loads(call(advise, run, "--json"))
    method, answer = advised["recommended"], advised["answer"]
    assert advised["advice"] == action
    assert (method == "none") == (action != "leap")
    assert answer.startswith("No leap; " if method == "none" else f"Test a leap with {method}, ")

    tested = json.loads(call(backtest, run, "--json"))
    assert (tested["recommended"], tested["reason"]) == (method, answer)

    found = reported(runs(name))
    assert (found["advice"], found["recommendation"]["method"]) == (action, method)
    assert found["recommendation"]["answer"] == answer

    options = (run, "--alpha", "auto", "--task", "chain", "--out", str(tmp_path / "out"))
    leapt = json.loads(call(leap_verb, *options, "--json"))
    assert leapt["method"] == method
    if method == "none":
        assert leapt["reason"] == answer
        assert not no_search
    else:
        assert [(asked.method, asked.horizon) for asked in no_search] == [(method, advised["horizon"])]
    assert not (tmp_path / "out").exists()

    for shown in (call(advise, run), call(backtest, run), call(leap_verb, *options)):
        assert answer in words(shown)


@pytest.mark.parametrize("name", REGIMES)
def test_a_leap_that_nobody_named_needs_an_advice_for_it(
    name: str, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    run, out = str(runs(name)), tmp_path / "out"
    advised = json.loads(call(advise, run, "--json"))
    options = (run, "--horizon", "50", "--out", str(out))
    if advised["recommended"] != "none":
        leapt = json.loads(call(leap_verb, *options, "--json"))
        assert (leapt["method"], leapt["horizon"]) == (advised["recommended"], 50)
        assert leapt["reason"] == advised["answer"]
        return
    for more in ((), ("--json",)):
        refused = refusal(leap_verb, *options, *more)
        assert advised["answer"][:100] in refused
        assert "--method" in refused
        assert "--alpha auto --task TASK" in refused
    assert not out.exists()
    for named in (("--method", "secant"), ("--alpha", "1")):
        assert json.loads(call(leap_verb, *options, *named, "--json"))["alpha"] == 1.0


def test_a_run_that_cannot_be_judged_is_leapt_from_by_name_only(tmp_path: Path) -> None:
    run = synthetic.write(tmp_path / "run", synthetic.line, synthetic.noisy(lambda t: 0.3))
    out = ("--at", "10", "--out", str(tmp_path / "out"))
    for given in ((), ("--alpha", "auto", "--task", "chain")):
        refused = refusal(leap_verb, str(run), *given, *out)
        assert "cannot be judged: advice needs 3 checkpoints" in refused
        assert "name a method with --method" in refused
    assert not (tmp_path / "out").exists()
    leapt = json.loads(call(leap_verb, str(run), "--method", "window", "--horizon", "10", *out, "--json"))
    assert leapt["method"] == "window"


@pytest.mark.parametrize("name", REGIMES)
def test_advice_ends_with_what_to_type(name: str, runs: Callable[[str], Path]) -> None:
    action, run = REGIMES[name][2], runs(name)  # a folder with a blank in its name
    step = json.loads(call(advise, str(run), "--json"))["next"]
    shown = call(advise, str(run))
    assert words(step["what"]) in words(shown)
    if action in ("raise_lr", "lower_lr"):
        assert step["command"] == ""
        assert "(it was 5e-5)" in step["what"]
        return
    assert f"Next:\n  {step['command']}\n" in shown  # on one line, to be copied
    program, verb, named, *_ = shlex.split(step["command"])
    assert (program, named) == ("nextrl", str(run))
    assert verb in VERBS


def under_auto(folder: Path, regime: str) -> Path:
    """A run of that regime whose rate `auto` set; what it decided later than the run's last step is not the run's."""
    run = synthetic.write(folder, *REGIMES[regime][:2])
    words = {100: "nothing speaks for another rate", 10_000: "a later run's word"}
    records = [DecisionRecord(step=s, alpha=0.0, reason=why, learning_rate=5e-5) for s, why in words.items()]
    decision_log.begin(run, records)
    return run


@pytest.mark.parametrize("regime", ["signal", "mixed", "fallen"])
def test_a_rate_that_auto_set_is_not_gainsaid(regime: str, tmp_path: Path) -> None:
    run = under_auto(tmp_path / "run", regime)
    advised = json.loads(call(advise, str(run), "--json"))
    assert (advised["advice"], advised["factor"], advised["recommended"]) == ("continue", None, "none")
    assert "This run was under auto" in advised["answer"]
    assert "at step 100 its word was: nothing speaks for another rate" in advised["answer"]
    assert "attach" not in advised["answer"] + advised["next"]["what"]
    assert "under auto" in refusal(leap_verb, str(run), "--out", str(tmp_path / "out"))


def test_a_run_that_auto_lost_is_begun_again_lower_and_not_under_auto(tmp_path: Path) -> None:
    advised = json.loads(call(advise, str(under_auto(tmp_path / "run", "ruined")), "--json"))
    assert (advised["advice"], advised["confidence"]) == ("lower_lr", "high")
    assert "This run was under auto" in advised["answer"]
    assert "attach" not in advised["next"]["what"]


def test_of_a_run_past_saving_nobody_is_told_to_train_on(runs: Callable[[str], Path]) -> None:
    assert "train on" not in json.loads(call(advise, str(runs("ruined")), "--json"))["next"]["what"]
    assert "begin again, from your base model" in words(call(advise, str(runs("ruined"))))
    assert "train on, then ask again" in words(call(advise, str(runs("fallen"))))


def test_what_auto_has_cooled_is_not_averaged_as_well(tmp_path: Path) -> None:
    def run(name: str, *, cooled: bool, auto: bool) -> dict[str, Any]:
        share = {t: min(1.0, (161 - t) / 32) if cooled else 1.0 for t in range(10, 161, 10)}
        rates = [{"step": t, "learning_rate": 1e-3 * s} for t, s in share.items()]
        folder = synthetic.write(tmp_path / name, *REGIMES["flat"][:2], logged_rates=rates, initial_lr=1e-3)
        if auto:
            decision_log.begin(folder, [DecisionRecord(step=100, alpha=0.0, reason="", learning_rate=1e-3)])
        found: dict[str, Any] = json.loads(call(advise, str(folder), "--json"))
        return found

    advised = run("cooled", cooled=True, auto=True)
    assert advised["advice"] == "continue"
    assert "use the last checkpoint as it is" in advised["answer"]
    assert run("auto", cooled=False, auto=True)["advice"] == "average"
    assert run("plain", cooled=True, auto=False)["advice"] == "average"


def test_of_a_decayed_rate_the_highest_is_named_and_little_is_sure(tmp_path: Path) -> None:
    decay = [{"step": t, "learning_rate": 5e-5 * (1 - t / 200)} for t in range(10, 201, 10)]
    run = synthetic.write(tmp_path / "run", *REGIMES["mixed"][:2], logged_rates=decay, initial_lr=5e-5)
    advised = json.loads(call(advise, str(run), "--json"))
    assert (advised["advice"], advised["confidence"]) == ("raise_lr", "low")
    assert "not constant (5e-05 at its highest, " in advised["answer"]
    assert "(it was 5e-5 at its highest)" in advised["next"]["what"]


def test_the_next_command_of_our_own_run_names_its_config_and_its_task(tmp_path: Path) -> None:
    out = tmp_path / "out"
    synthetic.write(out / "trajectory", *REGIMES["mixed"][:2])
    (out / "config.yaml").write_text("model: tiny\ntask: chain-wrong-rule\nleap: {method: none}\n")
    step = json.loads(call(advise, str(out / "trajectory"), "--json"))["next"]
    assert shlex.split(step["command"]) == [
        "nextrl",
        "run",
        str(out / "config.yaml"),
        "train.learning_rate=1e-4",
        f"output_dir={out}-lr-1e-4",
    ]
    assert "the cautious end" in step["what"]
    assert "5e-5 to 1e-2 was best" in step["what"]
    straight = tmp_path / "straight"
    synthetic.write(straight / "trajectory", *REGIMES["signal"][:2])
    (straight / "config.yaml").write_text((out / "config.yaml").read_text())
    step = json.loads(call(advise, str(straight / "trajectory"), "--json"))["next"]
    assert "--alpha auto --task chain-wrong-rule --out" in step["command"]


def test_the_factor_is_a_bound_with_the_range_that_was_seen(runs: Callable[[str], Path]) -> None:
    advised = json.loads(call(advise, str(runs("signal")), "--json"))
    low, high = advised["factor_range"]
    assert low <= advised["factor"] < high
    assert f"{low:g} to {high:g} times" in advised["answer"]
    assert "(x 3 or more)" in advised["answer"]
    assert math.isclose(advised["factor"], 3.0)


def test_a_method_named_by_hand_is_recommended_among_those_named_only(runs: Callable[[str], Path]) -> None:
    shown = call(backtest, str(runs("signal")), "--methods", "linear,lawa")
    assert "recommended: linear, among the methods named." in words(shown)


@pytest.mark.parametrize("name", ["list.json", "a file", "nothing"])
def test_what_is_no_run_is_refused_in_the_same_words(name: str, tmp_path: Path) -> None:
    """`leap` looks for full weights where there is no LoRA run, and must not hide why there is none."""
    path = tmp_path / name
    if name == "list.json":
        path.write_text(json.dumps({"10": "a", "010": "b"}))
    elif name == "a file":
        path.touch()
    said = []
    for verb, *options in ((advise,), (leap_verb, "--out", str(tmp_path / "out"))):
        app = Typer()
        app.command()(verb)
        result = CliRunner().invoke(app, [str(path), *options])
        assert isinstance(result.exception, InputError)
        said.append(str(result.exception))
    assert said[0] == said[1]


def test_the_average_that_is_printed_is_of_the_checkpoint_that_was_asked_about(
    runs: Callable[[str], Path], tmp_path: Path
) -> None:
    run, step = runs("flat"), Trajectory.load(runs("flat")).steps[-2]
    told = json.loads(call(advise, str(run), "--at", str(step), "--json"))
    assert told["advice"] == "average"
    words = shlex.split(told["next"]["command"])[2:]
    words[words.index("--out") + 1] = str(tmp_path / "typed")
    call(leap_verb, *words)
    call(advise, str(run), "--at", str(step), "--out", str(tmp_path / "written"))
    typed, written = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("typed", "written")
    )
    assert typed == written
