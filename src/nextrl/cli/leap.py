"""`nextrl leap`: write the extrapolated adapter or merged model."""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextrl.checkpoints import dense
from nextrl.cli.console import console, emit_json, err_console
from nextrl.errors import InputError
from nextrl.extrapolators import check_alpha
from nextrl.leaps.leap import Leap
from nextrl.leaps.leap import leap as make_leap
from nextrl.trajectory.trajectory import Trajectory

if TYPE_CHECKING:
    from nextrl.engines.offline import AlphaChoice


class As(str, Enum):
    """What is written."""

    adapter = "adapter"
    merged = "merged"


def leap(
    run: Annotated[Path, typer.Argument(help="Directory of checkpoints.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    method: Annotated[str, typer.Option(help="Extrapolator; `nextrl backtest` compares them.")] = "factors",
    horizon: Annotated[int | None, typer.Option(help="Steps ahead; 50 or what the run has.")] = None,
    alpha: Annotated[
        str, typer.Option(help="Step length; 1 is `horizon` steps, below 0 goes back; or auto (see --task).")
    ] = "1.0",
    at: Annotated[int | None, typer.Option(help="Leap from this checkpoint; the last by default.")] = None,
    kind: Annotated[As, typer.Option("--as", help="A PEFT adapter or a merged model.")] = As.adapter,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter; the run's by default.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model, for --as merged and --alpha auto.")] = None,
    task: Annotated[str | None, typer.Option(help="Task that --alpha auto scores candidates on.")] = None,
    prompts: Annotated[int, typer.Option(help="Most of them that --alpha auto scores a candidate on.")] = 64,
    level: Annotated[float, typer.Option(help="Standard errors that auto's gain must exceed.")] = 2.0,
    skip_bad_checkpoints: Annotated[bool, typer.Option(help="Leave broken checkpoints out.")] = False,
    allow_pickle: Annotated[bool, typer.Option(help="Read adapter_model.bin too (weights_only).")] = False,
    layout: Annotated[str | None, typer.Option(help="Reader, where the automatic choice is wrong.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of methods that draw random numbers.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write the extrapolated adapter (it loads in PEFT as it is) or the merged model.

    With --alpha auto several step lengths, a step back included, are scored on held-out prompts of --task; nothing
    is written unless one beats staying put past the noise, by the rule that leaps in a trainer are accepted by.

    Example: nextrl leap runs/grpo --method factors --horizon 50 --alpha 2 --out runs/leap
    """
    fixed = None if alpha == "auto" else _number(alpha)
    if fixed is None and task is None:
        raise InputError("--alpha auto needs --task NAME: what candidates are scored on")
    try:
        traj = Trajectory.load(
            run, layout=layout, skip_bad_checkpoints=skip_bad_checkpoints, allow_pickle=allow_pickle
        )
    except InputError as error:
        if not dense.find(run):
            raise
        raise InputError(
            f"{run}: holds full-weight checkpoints; leap writes LoRA adapters and needs a LoRA run "
            "(analyze --base MODEL reads full weights)"
        ) from error
    for line in traj.skipped:
        err_console.print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)
    base = base or traj.adapter_config.get("base_model_name_or_path")
    if kind is As.merged and not base:
        raise InputError("--as merged needs --base: the adapter does not name its base model")
    if kind is As.merged and rank is not None:
        raise InputError("--rank is of an adapter; a merged model has none: leave it out")
    if rank is not None and rank < 1:
        raise InputError(f"the rank of an adapter must be at least 1, not {rank}")
    result = make_leap(traj, method, horizon, 1.0 if fixed is None else fixed, at, seed)
    choice = _search(result, base, task, prompts, level, seed) if fixed is None and task else None
    if choice is not None:
        result = replace(result, alpha=choice.alpha)
    staying = choice is not None and choice.alpha == 0.0
    if not staying and kind is As.merged and base:
        result.save_merged(out, base)
    elif not staying:
        result.save_adapter(out, rank)
    if json:
        facts = {"method": result.method, "from_step": result.from_step, "horizon": result.horizon}
        facts |= {"alpha": result.alpha, "out": None if staying else str(out), "modules": list(traj.modules)}
        facts |= {"seconds": result.seconds, "discarded": result.discarded, "skipped": list(traj.skipped)}
        emit_json(facts | ({"search": asdict(choice)} if choice is not None else {}))
        return
    if choice is not None:
        words = "no leap" if staying else f"alpha {choice.alpha:g}"
        console.print(f"{words}: {choice.reason}; {choice.completions} completions", highlight=False)
    if not staying:
        _report(result, rank, out)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"--alpha {text}: must be a number or auto") from error
    return check_alpha(value)


def _search(
    result: Leap, base: str | None, task: str | None, prompts: int, level: float, seed: int
) -> AlphaChoice:
    """Load what `--alpha auto` needs, only when it is asked for: transformers takes seconds to import."""
    from nextrl import tasks
    from nextrl.engines.offline import choose_alpha
    from nextrl.tasks import bases

    if not base:
        raise InputError("--alpha auto needs --base: the adapter does not name its base model")
    chosen = tasks.base.get(str(task))
    model, tokenizer = bases.load(base, chosen.name)
    return choose_alpha(result, model, tokenizer, chosen, prompts=prompts, level=level, seed=seed)


def _report(result: Leap, rank: int | None, out: Path) -> None:
    lost = f"; the adapter's rank leaves out {result.discarded:.2%} of the energy" if rank is None else ""
    console.print(
        f"{result.method} from step {result.from_step}, {result.horizon} steps at alpha {result.alpha:g}: "
        f"{len(result.traj.modules)} modules written to {out} in {result.seconds:.1f} s{lost}"
    )
