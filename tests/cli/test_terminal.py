"""What one sees on a terminal: help at 80 columns, names one can type, progress in a log, completion without a wait."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from lora_runs import write_run
from nextrl import cli
from nextrl.cli import analyze, backtest, completion, console, run
from nextrl.extrapolators import names
from nextrl.judge.backtest import Backtest
from nextrl.judge.backtest_scores import ForecastScore, HorizonScores, MethodScore
from nextrl.runs.result import ArmSeries, Result

NEXTRL = [sys.executable, "-m", "nextrl"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "80", **more}


def said(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the program prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["nextrl", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_help_fits_80_columns_and_gives_texts_half_of_them(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = said([verb, "--help"], capsys, monkeypatch)
    lines = text.splitlines()
    assert lines[0].startswith(f"Usage: nextrl {verb} ")
    assert max(map(len, lines)) <= 80
    assert not set("…│╭") & set(text)
    options = lines[lines.index("Options:") + 1 :]
    columns = {len(line) - len(line.lstrip()) for line in options if not line.lstrip().startswith("-")}
    assert not columns or max(columns) <= 34


def scored() -> Backtest:
    outcome = ForecastScore(0.123456, 0.5, 0.4)
    score = MethodScore({280: outcome, 290: outcome}, {"q_proj": outcome}, 0.1, 0.01)
    found = HorizonScores(50, (280, 290), dict.fromkeys(names(), score), {}, "stay", {280: 50, 290: 50})
    return Backtest({50: found}, 50, "rank1-linear", "because")


def test_backtest_cuts_no_method_name_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = console._Plain(width=80)
    with narrow.capture() as captured:
        narrow.print(backtest._table(scored(), "rank1-linear"))
    text = captured.get()
    assert "…" not in text
    rows = {line.split()[0] for line in text.splitlines() if line.strip()}
    assert set(names()) <= rows


def test_a_long_table_says_what_it_leaves_out() -> None:
    steps = list(range(0, 410, 10))
    arm = ArmSeries(
        kind="plain",
        label="plain",
        steps=steps,
        **{k: [0.5] * 41 for k in ("accuracy", "se", "greedy", "seconds", "learning_rate")},
        completions=steps,
    )
    view = run.table(Result(arms={"run": arm}, task="chain", seed=0))
    assert view.row_count == run.EVALUATIONS
    assert "20 of 41 evaluations" in str(view.caption)
    short = {key: value[:12] for key, value in arm.model_dump().items() if isinstance(value, list)}
    whole = run.table(Result(arms={"run": arm.model_copy(update=short)}, task="chain", seed=0))
    assert (whole.row_count, whole.caption) == (12, None)


def test_checkpoints_of_a_table_are_spread_over_the_run() -> None:
    assert analyze.spread_out(range(10, 410, 10), 5) == [10, 110, 210, 300, 400]
    assert analyze.spread_out([10, 20], 5) == [10, 20]


def test_a_log_gets_a_line_every_two_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with console.TrainingProgress(400, clock=lambda: now[0]) as progress:
        for step in range(1, 41):
            now[0] += 30.0
            progress.update(step)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10  # twenty minutes
    assert lines[0] == "4 of 400 steps (1%), 2 min gone, about 3 h 18 min left"


def test_no_line_where_nothing_is_to_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with console.TrainingProgress(400, shown=False, clock=lambda: now[0]) as progress:
        for step in (1, 2):
            now[0] += 600.0
            progress.update(step)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_a_shell_is_told_the_options_that_a_verb_has(verb: str) -> None:
    command = typer.main.get_command(cli.build())
    flags, options = set(), set()
    for parameter in command.commands[verb].params:  # type: ignore[attr-defined]
        if parameter.param_type_name == "option":
            long = {name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")}
            (flags if parameter.is_flag else options).update(long)
    assert set(completion.FLAGS[verb].split()) == flags
    assert set(completion.OPTIONS[verb].split()) == options


def asked(words: str, shell: str = "bash") -> tuple[list[str], float]:
    """(what could follow, seconds of CPU)."""
    given = environment(
        _NEXTRL_COMPLETE=f"complete_{shell}",
        _TYPER_COMPLETE_ARGS=words,
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split(" ")) - 1),
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(NEXTRL, capture_output=True, text=True, check=True, env=given)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout.split(), spent


def test_completion_of_verbs_and_options() -> None:
    assert asked("nextrl ba")[0] == ["backtest"]
    assert asked("nextrl leap --al")[0] == ["--allow-pickle", "--alpha"]
    assert asked("nextrl leap --out x --pri")[0] == ["--private"]
    assert asked("nextrl leap --hor", "fish")[0] == ["--horizon"]
    assert '"--horizon"' in " ".join(asked("nextrl leap --hor", "zsh")[0])


def test_completion_does_not_wait() -> None:
    # .2 s on the machine it was measured on; torch alone takes a second.
    assert min(asked("nextrl leap --")[1] for _ in range(3)) < 0.6


def test_other_libraries_bars_and_notices_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys, warnings; sys.argv = ['nextrl', '--version']\n"
        "from nextrl.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "for module in ('trl.x', 'torch.optim.y', 'prodigyplus.z', 'peft'):\n"
        "    for kind in (FutureWarning, UserWarning, DeprecationWarning):\n"
        "        warnings.warn_explicit('later', kind, 'file.py', 1, module)\n"
        "warnings.warn_explicit('ours', UserWarning, 'file.py', 2, 'nextrl.x')\n"
    )
    for name in (*cli._NO_BARS, "TRANSFORMERS_VERBOSITY"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "later" not in done.stderr
    assert "ours" in done.stderr


def shell(line: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command in a shell's own words, `nextrl` in the place of `NEXTRL`."""
    words = line.replace("NEXTRL", f"'{sys.executable}' -m nextrl")
    return subprocess.run(
        ["sh", "-c", words], capture_output=True, text=True, check=False, env=environment(**more)
    )


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("NEXTRL --help >&-", 0),
        ("NEXTRL --version >&- 2>&- <&-", 0),
        ("NEXTRL inspect no-such-folder 2>&-", 2),
        ("NEXTRL inspect no-such-folder >&-", 2),
    ],
)
def test_a_closed_stream_changes_no_exit_code(line: str, code: int) -> None:
    done = shell(line)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_what_is_written_does_not_depend_on_a_closed_stdout(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    done = shell(f"NEXTRL leap '{tmp_path}/run' --method secant --out '{tmp_path}/leap' >&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "leap" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("encoding", ["ascii", "ascii:surrogateescape"])
def test_an_encoding_without_a_sign_loses_no_result(encoding: str, tmp_path: Path) -> None:
    folder = tmp_path / "läuft 走"
    write_run(folder, steps=(10, 20, 30))
    done = shell(
        f"NEXTRL backtest '{folder}' --methods secant && NEXTRL inspect '{folder}'", PYTHONIOENCODING=encoding
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "recommended: " in done.stdout


def test_ctrl_c_before_the_command_line_is_there_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    given = environment(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run([*NEXTRL, "--help"], capture_output=True, text=True, check=False, env=given)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\n")
