"""`nextrl leap`: write the extrapolated adapter or merged model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from nextrl.cli.console import console, emit_json
from nextrl.errors import InputError
from nextrl.leap import leap as make_leap
from nextrl.trajectory import Trajectory


class As(str, Enum):
    """What is written."""

    adapter = "adapter"
    merged = "merged"


def leap(
    run: Annotated[Path, typer.Argument(help="Directory of checkpoints.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    method: Annotated[str, typer.Option(help="Extrapolator; `nextrl backtest` compares them.")] = "factors",
    horizon: Annotated[int | None, typer.Option(help="Steps ahead; 50 or what the run has.")] = None,
    alpha: Annotated[float, typer.Option(help="Step length; 1 is `horizon` steps, below 0 goes back.")] = 1.0,
    at: Annotated[int | None, typer.Option(help="Leap from this checkpoint; the last by default.")] = None,
    kind: Annotated[As, typer.Option("--as", help="A PEFT adapter or a merged model.")] = As.adapter,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter; the run's by default.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model, for --as merged.")] = None,
    layout: Annotated[str | None, typer.Option(help="Reader, where the automatic choice is wrong.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of methods that draw random numbers.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write the extrapolated adapter (it loads in PEFT as it is) or the merged model.

    Example: nextrl leap runs/grpo --method factors --horizon 50 --alpha 2 --out runs/leap
    """
    traj = Trajectory.load(run, layout=layout)
    base = base or traj.adapter_config.get("base_model_name_or_path")
    if kind is As.merged and not base:
        raise InputError("--as merged needs --base: the adapter does not name its base model")
    if kind is As.merged and rank is not None:
        raise InputError("--rank is of an adapter; a merged model has none: leave it out")
    result = make_leap(traj, method, horizon, alpha, at, seed)
    if kind is As.merged and base:
        result.save_merged(out, base)
    else:
        result.save_adapter(out, rank)
    if json:
        facts = {"method": result.method, "from_step": result.from_step, "horizon": result.horizon}
        facts |= {"alpha": result.alpha, "out": str(out), "modules": list(traj.modules)}
        emit_json(facts | {"seconds": result.seconds, "discarded": result.discarded})
        return
    lost = f"; the adapter's rank leaves out {result.discarded:.2%} of the energy" if rank is None else ""
    console.print(
        f"{result.method} from step {result.from_step}, {result.horizon} steps at alpha {result.alpha:g}: "
        f"{len(traj.modules)} modules written to {out} in {result.seconds:.1f} s{lost}"
    )
