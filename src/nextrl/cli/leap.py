"""`nextrl leap`: write the extrapolated adapter or merged model."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextrl.checkpoints import dense
from nextrl.checkpoints.atomic import writing
from nextrl.cli import values
from nextrl.cli.checkpoints import (
    AllowPickle,
    Layout,
    RunFolder,
    Seed,
    SkipBadCheckpoints,
    Start,
    UpdatesPerStep,
    load_run,
)
from nextrl.cli.console import AsJson, console, emit_json
from nextrl.cli.device import Device
from nextrl.cli.method_params import Params, params_of
from nextrl.cli.next_step import task_of
from nextrl.errors import InputError, needs, require, shown
from nextrl.extrapolators import check_alpha
from nextrl.extrapolators.alphas import PAPER_ALPHA
from nextrl.judge.advice import Advice
from nextrl.judge.advise import advise
from nextrl.judge.backtest_scores import NONE
from nextrl.leaps.hub import check_push, push
from nextrl.leaps.leap import DEFAULT_METHOD, Leap
from nextrl.leaps.leap import leap as make_leap
from nextrl.leaps.merged_model import base_revision, find_base
from nextrl.trajectory.trajectory import Trajectory

if TYPE_CHECKING:
    from nextrl.engines.offline import AlphaChoice


PROMPTS = 64

_ALL_THE_SAME = (
    "Nothing was written: name a method with --method to have a leap all the same, and add --alpha auto --task TASK to "
    "have its length tested on held-out prompts first"
)
"""What to do where nothing speaks for a leap."""


class As(StrEnum):
    """What is written."""

    adapter = "adapter"
    merged = "merged"


def leap(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder to write.", callback=values.path)],
    method: Annotated[
        str | None,
        typer.Option(
            help="Extrapolator. Without it what `nextrl advise` recommends; factors where --alpha is a number."
        ),
    ] = None,
    param: Params = None,
    horizon: Annotated[
        int | None, typer.Option(help="Steps ahead; 50 or what the run has.", callback=values.steps)
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option(
            help="Step length; 1 is `horizon` steps, below 0 goes back; or auto (see --task). Without it 1, "
            f"next-paper {PAPER_ALPHA}."
        ),
    ] = None,
    at: Annotated[
        int | None, typer.Option(help="Leap from this checkpoint; the last by default.", callback=values.step)
    ] = None,
    kind: Annotated[As, typer.Option("--as", help="A PEFT adapter or a merged model.")] = As.adapter,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the adapter; the run's by default.", callback=values.rank)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Base model's folder, for --as merged and --alpha auto (there also a name, as eval takes it)."
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task that --alpha auto scores candidates on.")] = None,
    prompts: Annotated[
        int | None,
        typer.Option(
            max=values.MAX_PROMPTS,
            help=f"Most held-out prompts that --alpha auto scores a candidate on; {PROMPTS} by default.",
        ),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(
            help="Standard errors that --alpha auto's gain must exceed; by default as many as keep chance at a "
            "tenth of searches.",
            callback=values.level,
        ),
    ] = None,
    device: Device = None,
    updates_per_step: UpdatesPerStep = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="Send what was written to the Hugging Face Hub too."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="As a private repository.")] = False,
    skip_bad_checkpoints: SkipBadCheckpoints = False,
    allow_pickle: AllowPickle = False,
    layout: Layout = None,
    start: Start = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write the extrapolated adapter (it loads in PEFT as it is) or the merged model.

    Without --method, method and horizon are those of `nextrl advise`; where it sees no leap, none is made unless you
    name one. With --alpha auto several step lengths, a step back included, are scored on held-out prompts of --task,
    and nothing is written unless one of them beats staying put past the noise. The same rule accepts leaps inside a
    trainer.

    Example: nextrl leap runs/grpo --method factors --horizon 50 --alpha 2 --out runs/leap
    """
    params = params_of(method, param)
    searches = alpha == "auto"
    fixed = None if alpha is None or searches else _number(alpha)
    _check_search(searches, task, {"prompts": prompts, "level": level, "device": device})
    _check_hub(push_to_hub, private)
    traj = _load_adapters(run, layout, skip_bad_checkpoints, allow_pickle, at, start)
    base = values.place(base) or _named_base(traj)
    _check_kind(kind, base, rank)
    reason = ""
    if method is None and fixed is None:
        advice = _advice(run, traj, updates_per_step)
        if advice.recommended == NONE and searches:
            _no_leap(advice, traj, as_json)
            return
        method, horizon, reason = _advised(run, advice, horizon)
    result = make_leap(traj, method or DEFAULT_METHOD, horizon, fixed, at, seed, **params)
    choice = None
    if searches and task:
        most = PROMPTS if prompts is None else prompts
        choice = _search(result, base, task, device, most, level, seed)
        result = replace(result, alpha=choice.alpha)
    staying = choice is not None and choice.alpha == 0.0
    written = None if staying else _write(result, out, base if kind is As.merged else None, rank, task, run)
    sent = push(out, push_to_hub, private=private) if push_to_hub and not staying else None
    if as_json:
        emit_json(_facts(result, written, choice) | {"pushed_to": sent, "reason": reason or None})
    else:
        _say(result, written, choice, reason, rank, sent)


def _check_search(searches: bool, task: str | None, of_a_search: dict[str, Any]) -> None:
    """What `--alpha auto` needs, and nothing else reads, before anything is computed or written."""
    if not searches:
        values.refuse_given("of a search (--alpha auto)", of_a_search)
        return
    if task is None:
        raise InputError("--alpha auto needs --task NAME: what candidates are scored on")
    require("peft", "trl", "--alpha auto")


def _check_hub(push_to_hub: str | None, private: bool) -> None:
    """What `--push-to-hub` needs, before anything is computed or written."""
    if push_to_hub is None:
        values.refuse_given("of --push-to-hub", {"private": private})
        return
    require("huggingface_hub", "trl", "--push-to-hub")
    check_push(push_to_hub)


def _check_kind(kind: As, base: str | None, rank: int | None) -> None:
    """What `--as merged` needs, and what nothing would read under it."""
    if kind is As.merged and not base:
        raise InputError("--as merged needs --base: the adapter does not name its base model")
    if kind is As.merged and rank is not None:
        raise InputError("--rank is of an adapter; a merged model has none: leave it out")


def _load_adapters(
    run: Path,
    layout: str | None,
    skip_bad_checkpoints: bool,
    allow_pickle: bool,
    at: int | None,
    start: int | None,
) -> Trajectory:
    try:
        return load_run(run, layout, skip_bad_checkpoints, allow_pickle, at, start)
    except InputError as error:
        if not (run.is_dir() and dense.find(run)):
            raise
        raise InputError(
            f"{run}: holds full-weight checkpoints; leap writes LoRA adapters and needs a LoRA run ({dense.READ_BY})"
        ) from error


def _facts(result: Leap, out: Path | None, choice: AlphaChoice | None) -> dict[str, Any]:
    """The object of `--json`; `out` is None where nothing was written."""
    facts = {
        "method": result.method,
        "from_step": result.from_step,
        "horizon": result.horizon,
        "alpha": result.alpha,
        "out": None if out is None else str(out),
        "modules": list(result.traj.modules),
        "seconds": result.seconds,
        "discarded": result.discarded,
        "skipped": list(result.traj.skipped),
    }
    return facts if choice is None else facts | {"search": asdict(choice)}


def _say(
    result: Leap,
    out: Path | None,
    choice: AlphaChoice | None,
    reason: str,
    rank: int | None,
    sent: str | None,
) -> None:
    """What was written and why, for a reader; `out` is None where nothing was written."""
    if reason:
        console.print(reason)
    if choice is not None:
        _say_choice(result, choice)
    if out is not None:
        _report(result, rank, out)
    if sent is not None:
        console.print(f"Sent to {sent}", soft_wrap=True)


def _say_choice(result: Leap, choice: AlphaChoice) -> None:
    words = "No leap" if choice.alpha == 0.0 else f"Alpha {choice.alpha:g}"
    console.print(
        f"{words}. Tested {result.method}, {result.horizon} steps ahead: "
        f"{choice.reason.removeprefix(f'{result.method}: ')}; {choice.completions} completions."
    )


def _write(
    result: Leap, out: Path, merged_into: str | None, rank: int | None, task: str | None, run: Path
) -> Path:
    """Write the adapter, or the base model that is named with the leap in it; returns where."""
    if merged_into:
        _save_merged(result, out, merged_into, task)
    else:
        result.save_adapter(out, rank, task or task_of(run))
    return out


def _save_merged(result: Leap, out: Path, base: str, task: str | None) -> None:
    """Fold the leap into a folder's model, or into one of ours by name, which is written out for it first."""
    from nextrl.tasks import bases

    if base not in bases.names():
        result.save_merged(out, base)
        return
    if task is None:
        raise InputError(
            f"--as merged with --base {base} needs --task NAME: {base} is another model for each task"
        )
    loaded = bases.load(base, task)
    with tempfile.TemporaryDirectory() as folder:
        with writing(Path(folder), "nothing is left of it"):
            for part in loaded:
                part.save_pretrained(folder)
        result.save_merged(out, folder, name=base)


def _advice(run: Path, traj: Trajectory, updates_per_step: int | None) -> Advice:
    """What `nextrl advise` says of the run, which was read up to the checkpoint that is leapt from.

    Raises:
        InputError: it cannot judge this run.
    """
    try:
        return advise(traj, updates_per_step=updates_per_step)
    except InputError as error:
        raise InputError(
            f"{run}: whether a leap may pay cannot be judged: {error}. {_ALL_THE_SAME}"
        ) from error


def _advised(run: Path, advice: Advice, horizon: int | None) -> tuple[str, int | None, str]:
    """(method, horizon, why) of the leap that is advised; `horizon` where the user named one.

    Raises:
        InputError: none is.
    """
    if advice.recommended == NONE:
        raise InputError(f"{run}: {advice.answer} {_ALL_THE_SAME}")
    return advice.recommended, advice.horizon if horizon is None else horizon, advice.answer


def _no_leap(advice: Advice, traj: Trajectory, as_json: bool) -> None:
    """Say why nothing is tried; nothing is written."""
    if as_json:
        facts = {
            "method": NONE,
            "from_step": advice.features.step,
            "horizon": None,
            "alpha": 0.0,
            "out": None,
        }
        emit_json(facts | {"reason": advice.answer, "search": None, "skipped": list(traj.skipped)})
        return
    console.print(f"{advice.answer} Nothing was tried; --method NAME tries one all the same.")


def _named_base(traj: Trajectory) -> str | None:
    """The base model that the run's own configuration names."""
    named = traj.adapter_config.get("base_model_name_or_path")
    if named is not None and not isinstance(named, str):
        raise InputError(
            f"base_model_name_or_path is {shown(named)}, no name or folder; name the base with --base"
        )
    return named or None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"--alpha {shown(text)}: must be a number or auto") from error
    return check_alpha(value)


def _search(
    result: Leap,
    base: str | None,
    task: str,
    device: str | None,
    prompts: int,
    level: float | None,
    seed: int,
) -> AlphaChoice:
    """Load what `--alpha auto` needs, only when it is asked for: transformers takes seconds to import."""
    with needs("trl", "--alpha auto"):
        from nextrl.engines.offline import choose_alpha
    from nextrl.tasks import base as tasks
    from nextrl.tasks import bases
    from nextrl.tasks.bases.device import placed

    if not base:
        raise InputError("--alpha auto needs --base: the adapter does not name its base model")
    chosen = tasks.get(task)
    if (revision := base_revision(result.traj, base)) is not None:
        base = str(find_base(base, revision))
    model, tokenizer = bases.load(base, chosen.name)
    return choose_alpha(
        result, placed(model, device), tokenizer, chosen, prompts=prompts, level=level, seed=seed
    )


def _report(result: Leap, rank: int | None, out: Path) -> None:
    lost = f"; the adapter's rank leaves out {result.discarded:.2%} of the energy" if rank is None else ""
    console.print(
        f"{result.method} from step {result.from_step}, {result.horizon} steps at alpha {result.alpha:g}: "
        f"{len(result.traj.modules)} modules written to {out} in {result.seconds:.1f} s{lost}",
        highlight=True,
    )
