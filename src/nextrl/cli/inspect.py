"""`nextrl inspect RUN`: what is there, and everything that is wrong with it."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Annotated, Any

import typer
from rich.table import Table

from nextrl.checkpoints import AdapterCheckpoint, OpenedRun, open_run
from nextrl.checkpoints.adapter import weights_path
from nextrl.checkpoints.run import knows_start
from nextrl.cli.checkpoints import AllowPickle, Layout, RunFolder, SkipBadCheckpoints, say_left_out
from nextrl.cli.console import AsJson, console, emit_json, err_console
from nextrl.errors import InputError, one_line
from nextrl.trajectory.unsure_start import far_start


def inspect(
    run: RunFolder,
    layout: Layout = None,
    skip_bad_checkpoints: SkipBadCheckpoints = False,
    allow_pickle: AllowPickle = False,
    values: Annotated[bool, typer.Option(help="Read all values to find NaN and Inf.")] = True,
    as_json: AsJson = False,
) -> None:
    """List the layout, steps, modules, ranks, dtype and size of a run, and each problem with what to do.

    Example: nextrl inspect runs/grpo
    """
    found = open_run(run, layout=layout, allow_pickle=allow_pickle)
    facts = describe(found, values=values, skip_bad_checkpoints=skip_bad_checkpoints)
    for line in facts["skipped"]:
        say_left_out(line)
    if as_json:
        emit_json(facts)
    else:
        _show(facts)
    if not facts["steps"]:
        count = len(facts["problems"]) + len(facts["skipped"])
        raise InputError(f"{run}: no checkpoint can be used ({_counted(count)}, listed above)")


def _unknown_start(found: OpenedRun, first: AdapterCheckpoint) -> str:
    """Why W_0 is unknown, and what to do."""
    if found.start:
        return (
            f"{found.source}: begins with the leap that wrote step {found.start}, which is not among its usable "
            "checkpoints, so that deltas from the start are unknown; restore it"
        )
    init = first.settings.raw.get("init_lora_weights")
    return (
        f"{first.settings.path}: init_lora_weights={init!r} starts from B_0 A_0 != 0, and step 0 is not "
        "there; save the initial adapter as checkpoint-0, or deltas from the start are unknown"
    )


def _counted(problems: int) -> str:
    return "1 problem" if problems == 1 else f"{problems} problems"


def describe(found: OpenedRun, *, values: bool = True, skip_bad_checkpoints: bool = False) -> dict[str, Any]:
    """The JSON object of `inspect`: keys `layout, steps, modules, rank, dtype, bytes, problems`, and more.

    Args:
        found: an opened run.
        values: read everything once, to find NaN and Inf.
        skip_bad_checkpoints: describe the run without them; why each is left out is in `skipped`, not in `problems`.
    """
    known = list(found.problems)
    if values:
        known += [problem for c in found.checkpoints if (problem := c.broken_values()) is not None]
    bad = {problem.step for problem in known if problem.fatal}
    dropped = bad if skip_bad_checkpoints else set()
    checkpoints = [c for c in found.checkpoints if c.step not in dropped]
    skipped = [str(problem) for problem in known if skip_bad_checkpoints and problem.fatal]
    skipped += map(str, found.left_out)
    problems = [str(problem) for problem in known if not (skip_bad_checkpoints and problem.fatal)]
    last = checkpoints[-1] if checkpoints else None
    if checkpoints and not knows_start(checkpoints[0], found.start):
        problems.append(_unknown_start(found, checkpoints[0]))
    elif values and found.start == 0 and (far := far_start([c for c in checkpoints if c.step not in bad])):
        problems.append(far)
    ranks = sorted({r for c in checkpoints for _, _, r in c.shapes.values()})
    dtypes = sorted({name for c in checkpoints for name in c.dtypes})
    return {
        "layout": found.layout,
        "steps": [c.step for c in checkpoints],
        "modules": list(last.modules) if last else [],
        "rank": ranks[0] if len(ranks) == 1 else (ranks or None),
        "dtype": "/".join(dtypes) or None,
        "bytes": sum(weights_path(c.folder).stat().st_size for c in checkpoints),
        "problems": problems,
        "skipped": skipped,
        "usable_steps": [c.step for c in checkpoints if c.step not in bad],
        "scaling": sorted({last.scaling(m) for m in last.modules}) if last else [],
        "shapes": _shapes(last),
        "carried": list(last.carried) if last else [],
    }


def _shapes(last: AdapterCheckpoint | None) -> list[dict[str, Any]]:
    counts = Counter(last.shapes.values()) if last else Counter()
    return [{"m": m, "n": n, "rank": r, "modules": count} for (m, n, r), count in counts.items()]


def _show(facts: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("layout", facts["layout"])
    table.add_row("steps", _steps(facts["steps"]))
    if facts["steps"]:
        table.add_row(
            "modules", one_line(f"{len(facts['modules'])} ({facts['modules'][0]} ... {facts['modules'][-1]})")
        )
        for shape in facts["shapes"]:
            table.add_row("", f"{shape['modules']} of {shape['m']} x {shape['n']}, rank {shape['rank']}")
        table.add_row("scaling", ", ".join(f"{s:g}" for s in facts["scaling"]))
        table.add_row("dtype", facts["dtype"])
        table.add_row("size", _size(facts["bytes"]))
        if facts["carried"]:
            some = ", ".join(facts["carried"][:3]) + (" ..." if len(facts["carried"]) > 3 else "")
            table.add_row(
                "carried", f"{len(facts['carried'])} tensors, kept but not extrapolated: {one_line(some)}"
            )
    console.print(table)
    if facts["problems"]:
        err_console.print(_counted(len(facts["problems"])), style="bold")
        for problem in facts["problems"]:
            err_console.print(f"- {one_line(problem)}", soft_wrap=True)
    else:
        console.print("no problems")


def _steps(steps: list[int]) -> str:
    gaps = {b - a for a, b in itertools.pairwise(steps)}
    if len(steps) > 3 and len(gaps) == 1:
        return f"{steps[0]}, {steps[1]}, ... {steps[-1]} ({len(steps)} checkpoints, every {gaps.pop()})"
    return ", ".join(map(str, steps)) or "none"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
