"""Fifty steps on from the leaps of studies/race/leaps.py: do the leaps that looked best right away still pay then?

    python -m studies.race.onward          # after studies.race.leaps

Training goes on from checkpoint 100 with the leap's A and B at the run's own rank, Adam's moments, rate, data order and
random state as the plain run had them, so the plain run itself is the control (its step 150). The alpha is the one
that leaps.py chose on validation prompts. Results go into the same files, as `onward`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerCallback

from nextrl import Trajectory
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.live_weights import State
from nextrl.engines.trl.trainer import build_trainer, with_adapter
from nextrl.leaps.leap import leap
from nextrl.runs.loop import one_thread
from nextrl.tasks import base, bases
from nextrl.tasks.evaluate import evaluate
from studies.folders import default_out, parser
from studies.race import candidates  # noqa: F401  (registers the study's own methods)
from studies.race.leaps import AT, HORIZON, VARIANTS
from studies.race.run import RACE_RATES, TASKS, arm

METHODS = ("factors", "secant", "next", "factors-10", "nowcast", "next-paper")


class Put(TrainerCallback):
    """Write a state into the adapter before the first step of a resumed run."""

    def __init__(self, state: State) -> None:
        self._state = state

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the checkpoint was loaded."""
        assert state.global_step == AT
        LiveAdapter(kwargs["model"]).write(self._state)


def onward(folder: Path, task: str, rate: float, seed: int, name: str, alpha: float) -> float:
    """Accuracy at step 150 of the run that leapt at step 100."""
    method, horizon, params = VARIANTS.get(name, (name, HORIZON, {}))
    scale = HORIZON / horizon
    settings = arm(task, rate, seed)
    fitted = leap(
        Trajectory.load(folder), method, horizon, alpha=min(64.0, alpha * scale), at=AT, seed=seed, **params
    )
    base_model, tokenizer = bases.load("tiny", task)
    model = with_adapter(base_model, settings.lora, seed)
    with TemporaryDirectory() as place:
        trainer = build_trainer(
            model,
            tokenizer,
            base.get(task),
            settings.train,
            Path(place),
            save=False,
            callbacks=[Put(fitted.leap_state())],
        )
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{AT}"))
    return evaluate(model, tokenizer, base.get(task), greedy=False).accuracy


def main() -> None:
    """Seed by seed, so that what is done is always whole seeds."""
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=Path, default=default_out("race") / "runs")
    arguments.add_argument("--raw", type=Path, default=default_out("race") / "raw")
    arguments.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    options = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    one_thread()
    for seed in options.seeds:
        for task, rate in [(t, r) for t in TASKS for r in RACE_RATES[t]]:
            for name in options.methods:
                path = options.raw / task / f"{rate:g}" / f"seed-{seed}.json"
                result = json.loads(path.read_text()) if path.is_file() else {"methods": {}}
                entry = result["methods"].get(name, {})
                # Where no alpha won on validation nobody would have leapt: that run is the plain one.
                if "alpha" not in entry or entry["stays"] or name in result.get("onward", {}):
                    continue
                folder = options.runs / task / f"plain-{rate:g}" / f"seed-{seed}"
                accuracy = onward(folder, task, rate, seed, name, entry["alpha"])
                result.setdefault("onward", {})[name] = accuracy
                path.write_text(json.dumps(result, indent=1) + "\n")
                plain = result["plain"]["150"]
                print(f"{path} {name}: {accuracy:.3f}, plain {plain:.3f}", flush=True)


if __name__ == "__main__":
    main()
