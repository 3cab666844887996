"""The README.md beside what we write: a model card as the Hugging Face Hub reads it, and as a person does.

Written without `huggingface_hub`, which the base install does not need: where it is, it tells where its cache lies.
A test reads the card back with its `ModelCard`. A card is for others, so it names no folder of this machine: of a path
only the last part is said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from nextrl.checkpoints.atomic import write_bytes
from nextrl.errors import MissingExtra, needs, printable
from nextrl.leaps.provenance import CARD
from nextrl.tasks import bases
from nextrl.trajectory.trajectory import Trajectory
from nextrl.version import VERSION

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_CACHED = "models--"
"""What a model's folder in a Hugging Face cache begins with: `models--ORG--NAME/snapshots/COMMIT` is ORG/NAME."""

Kind = Literal["adapter", "merged", "trained"]
"""What a card is of: an adapter, a base with a leap added to it, or a model whose own weights were trained."""
_TITLES: dict[Kind, str] = {"adapter": "LoRA adapter", "merged": "Merged model", "trained": "Trained model"}

_LOAD_ADAPTER = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, {place})  # this folder, or its name on the Hub
```"""
_LOAD_ON_OURS = """```python
from nextrl.tasks import bases
from peft import PeftModel

base, tokenizer = bases.load({base}, {task})  # a base that nextrl ships{which}
model = PeftModel.from_pretrained(base, {place})  # this folder, or its name on the Hub
```"""
_LOAD_MODEL = """```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({place})  # this folder, or its name on the Hub
```"""


def write_card(
    folder: Path,
    traj: Trajectory,
    step: int,
    details: Mapping[str, Any],
    *,
    out: Path | None = None,
    task: str | None = None,
) -> Path:
    """Write `folder/README.md` of an adapter or a merged model that was made from a run.

    Args:
        folder: what holds the weights.
        traj, step: the run and the checkpoint that was leapt from.
        details: as `nextrl.json` has them (`kind`, `method`, `alpha`, `horizon`, ...).
        out: what the folder will be called, where it has another name until it is whole.
        task: what the run was trained on, where it is known.
    """
    run_names = traj.adapter_config.get("base_model_name_or_path")
    named = details.get("base") or run_names
    base = base_name(named)
    kind: Kind = "merged" if details.get("kind") == "merged" else "adapter"
    method, alpha = details.get("method"), details.get("alpha")
    rows: dict[str, object] = {
        "base model": base or "not named by the run",
        # A folder that a merge was given need not hold the model that the run was trained on.
        "base model that the run names": None if base_name(run_names) == base else base_name(run_names),
        "method": method,
        "alpha": alpha,
        "horizon": None if details.get("horizon") is None else f"{details['horizon']} steps",
        "leapt from": f"step {step}",
        "checkpoints used": _steps([s for s in traj.steps if s <= step]),
        "run": None if traj.source is None else Path(traj.source).name,
        "energy the rank leaves out": _percent(details.get("discarded_energy")),
        "left out": details.get("left_out"),
        "written by": f"nextrl {VERSION}",
    }
    what = "A merged model" if kind == "merged" else "A LoRA adapter"
    made = (
        f"extrapolated from the checkpoints of a training run ({method}, alpha {alpha:g})"
        if method and alpha
        else ("made from the checkpoints of a training run")
    )
    about = (
        f"{what} {made}. No step of training was spent on what lies beyond step {step}; whether it is better than the "
        "checkpoint is for held-out prompts to say. `nextrl.json` beside this file has every setting, and the SHA-256 "
        "of each file that was read."
    )
    place = folder if out is None else out
    text = card_text(
        about, base, rows, kind=kind, hub=hub_id(named), place=place.resolve().name, task=base_name(task)
    )
    path = folder / CARD
    write_bytes(path, text.encode())
    return path


def card_text(
    about: str,
    base: str | None,
    rows: Mapping[str, object],
    *,
    kind: Kind,
    hub: str | None = None,
    place: str = "",
    task: str | None = None,
) -> str:
    """The card.

    Args:
        about: one paragraph.
        base: the base model's name, as `base_name` gives it.
        rows: of its table; None is left out.
        kind: what it is of.
        hub: the base model's name on the Hub, as `hub_id` gives it.
        place: the last part of the folder's path.
        task: the run's, as `base_name` gives it.
    """
    full = kind != "adapter"
    meta: dict[str, Any] = {
        "library_name": "transformers" if full else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["nextrl"] if full else ["lora", "nextrl"],
    }
    if hub is not None:
        meta["base_model"] = hub
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None)
    onto = _LOAD_ON_OURS if base in bases.names() else _LOAD_ADAPTER
    load = (_LOAD_MODEL if full else onto).format(
        base=repr(base or "BASE"),
        place=repr(place or "PATH"),
        task=repr(task) if task else "TASK",
        which="" if task else '; TASK: the run\'s, such as "chain"',
    )
    return (
        f"---\n{yaml.safe_dump(meta, sort_keys=True)}---\n\n"
        f"# {_TITLES[kind]} written by nextrl\n\n{about}\n\n"
        f"| | |\n|---|---|\n{table}\n\n## How to load it\n\n{load}\n"
    )


def base_name(named: object) -> str | None:
    """A base model's name as others can read it.

    That is a name as it is, of a folder of a Hugging Face cache the model's name, of another path the last part.
    """
    if not isinstance(named, str) or not named.strip():
        return None
    path = Path(named)
    if (cached := _of_snapshot(path)) is not None:
        return cached
    if path.is_absolute() or named.startswith((".", "~")) or "\\" in named or path.exists():
        return path.name or None
    return named


def hub_id(named: object) -> str | None:
    """A base model's name on the Hub where it is known to be one, since a cache of this machine holds it; else None.

    A name alone does not tell: "models/x", and "gpt2" too, may be a folder of where the run was trained.
    """
    if not isinstance(named, str):
        return None
    if (cached := _of_snapshot(Path(named))) is not None:
        return cached
    if named in bases.names() or not _HUB_NAME.fullmatch(named) or Path(named).exists():
        return None
    try:
        with needs("trl", "a look into the Hub's cache"):
            from huggingface_hub import constants
    except MissingExtra:  # what downloads into a cache is not here
        return None
    folder = Path(constants.HF_HUB_CACHE, _CACHED + named.replace("/", "--"))
    return named if (folder / "snapshots").is_dir() else None


def _of_snapshot(path: Path) -> str | None:
    """The model's name on the Hub of a folder that is, or leads to, its snapshot in a Hugging Face cache."""
    try:
        parts = Path(os.path.realpath(path)).parts
    except ValueError:  # a NUL in it: no path can have one
        return None
    if len(parts) < 3 or parts[-2] != "snapshots" or not parts[-3].startswith(_CACHED):
        return None
    return parts[-3].removeprefix(_CACHED).replace("--", "/")


_ACTIVE = re.compile(r"[<\[`|\\&@]|://|www\.")
"""What begins HTML, a link, an image, an entity or a cell in GitHub's Markdown, where bare addresses are links."""


def _cell(value: object) -> str:
    """A value in a cell of the table, as text: what a stranger's file says is published, and makes no link or HTML."""
    text = printable(f"{value:g}" if isinstance(value, float) else str(value)).replace("\n", " ").strip()
    if not _ACTIVE.search(text):
        return text
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    # A bar ends a cell inside a code span, too, but for one after an odd number of backslashes.
    escaped = re.sub(r"\\*\|", lambda bar: "\\" * (2 * len(bar[0]) - 1) + "|", text)
    return f"{fence} {escaped} {fence}"


def _percent(value: object) -> str | None:
    return f"{value:.2%}" if isinstance(value, float) else None


def _steps(steps: list[int]) -> str:
    few = ", ".join(map(str, steps)) if len(steps) < 6 else f"{steps[0]}, {steps[1]}, ..., {steps[-1]}"
    return f"{len(steps)} (steps {few})"
