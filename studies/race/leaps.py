"""Leap every plain run of studies/race/run.py at step 100 by every method, each at its best alpha, and measure.

    python -m studies.race.leaps           # after studies.race.run; about 35 s a run

Equal price: each method may try the same alphas on the same 128 validation prompts with the same random numbers. Its
best alpha other than 0 goes to 1000 test prompts; where no alpha beat staying put on validation, a user would have
stayed, and the table says both. One JSON file a run; a run that has one is left alone.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nextrl import Trajectory
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.trainer import with_adapter
from nextrl.errors import InputError
from nextrl.leaps.leap import Leap, leap
from nextrl.runs.loop import one_thread
from nextrl.tasks import base, bases
from nextrl.tasks.evaluate import complete, grade
from studies.folders import default_out, parser
from studies.race import candidates  # noqa: F401  (registers the study's own methods)

AT, HORIZON = 100, 50
ALPHAS = (-0.5, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
VALIDATION, TEST = 128, 1000
METHODS = (
    "factors",
    "secant",
    "window",
    "linear",
    "first-update",
    "relex",
    "relex-pinned",
    "ols",
    "rank1-linear",
    "next",
    "next-paper",
    "lawa",
    "ema",
    "bema",
    "rna",
    "dmd",
    "quadratic",
    "nowcast",
    "alpharl",
    "factors-10",
    "factors-ols",
)
# Tried where the rate is already right, and only there.
TUNED_ONLY = (
    "factors-persistent",
    "secant-10",
    "lawa-3",
    "lawa-all",
    "lawa-factors",
    "lawa-step",
    "denoised",
    "ridge",
)
TUNED = {"chain": 5e-4, "chain-wrong-rule": 1e-3}
# 30 to 40 s a fit: only on these seeds.
SLOW = {"next-paper": (0, 1)}
# Same method, another window or count: name -> (method, horizon of the fit, parameters).
VARIANTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "factors-10": ("factors", 10, {}),
    "secant-10": ("secant", 10, {}),
    "lawa-3": ("lawa", HORIZON, {"count": 3}),
    "lawa-all": ("lawa", HORIZON, {"count": 10}),
}


class Judge:
    """The base model of one task, which takes any adapter state and answers prompts with it."""

    def __init__(self, task: str) -> None:
        base_model, self.tokenizer = bases.load("tiny", task)
        self.model = with_adapter(base_model, LoraSettings(), 0)
        self.adapter, self.task = LiveAdapter(self.model), base.get(task)
        self._weights = {n: p for n, p in self.model.named_parameters() if "lora_" not in n}
        self._saved = {n: p.detach().clone() for n, p in self._weights.items()}

    def rewards(self, state: dict[str, Any], split: str, count: int, seed: int) -> list[float]:
        """Reward of one sampled completion a prompt; the same prompts and draws for every state."""
        self.adapter.write(state)
        examples = self.task.examples(split)[:count]  # type: ignore[arg-type]
        self.model.merge_adapter()  # a quarter faster; the base is put back bit by bit below
        try:
            texts = complete(
                self.model,
                self.tokenizer,
                [e.prompt for e in examples],
                max_new_tokens=self.task.max_completion_length,
                seed=seed,
            )
        finally:
            self.model.unmerge_adapter()
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(self._saved[name])
        return grade(self.task, examples, texts).tolist()


def mean(values: list[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)


def geometry(fitted: Leap, whole: Trajectory, alpha: float) -> dict[str, float]:
    """Cosine and length of the leap against what the run did in the next h steps, all modules as one vector."""
    inner = size = actual = weight = 0.0
    for module in whole.modules:
        future = whole.delta(module, AT, AT + HORIZON)
        predicted = fitted.prediction.delta(module, alpha)
        inner += float(predicted.inner(future))
        size += float(predicted.inner(predicted))
        actual += float(future.inner(future))
        weight += float(whole.weight(AT, module).norm()) ** 2
    cosine = inner / (size * actual) ** 0.5 if size > 0 and actual > 0 else 0.0
    return {
        "cosine": cosine,
        "future_lengths": (size / actual) ** 0.5 if actual > 0 else 0.0,
        "relative_step": (size / weight) ** 0.5,
    }


def one_method(
    judge: Judge, name: str, whole: Trajectory, seed: int, still: dict[str, float]
) -> dict[str, Any]:
    """Fit, search alpha on validation prompts, measure the best one on test prompts."""
    method, horizon, params = VARIANTS.get(name, (name, HORIZON, {}))
    began = time.process_time()
    try:
        fitted = leap(whole, method, horizon, at=AT, seed=seed, **params)
    except InputError as error:
        return {"refused": str(error)}
    fit_seconds = time.process_time() - began
    # A longer alpha for a shorter window, so that every method can reach equally far.
    scale = HORIZON / horizon if horizon != HORIZON else 1.0
    states = {a: replace(fitted, alpha=min(64.0, a * scale)) for a in ALPHAS}
    scores = {
        a: mean(judge.rewards(s.leap_state(), "validation", VALIDATION, seed)) for a, s in states.items()
    }
    best = max(scores, key=lambda a: (scores[a], -abs(a)))
    chosen = states[best]
    after = mean(judge.rewards(chosen.leap_state(), "test", TEST, 0))
    one = after if best == 1.0 else mean(judge.rewards(states[1.0].leap_state(), "test", TEST, 0))
    return {
        "alpha": best,
        "stays": scores[best] <= still["validation"],
        "accuracy": after,
        "gain": after - still["test"],
        "gain_at_one": one - still["test"],
        "scores": {f"{a:g}": round(s, 4) for a, s in scores.items()},
        "discarded": float(chosen.discarded),
        "fit_seconds": round(fit_seconds, 2),
        **{k: round(v, 4) for k, v in geometry(fitted, whole, min(64.0, best * scale)).items()},
    }


def one_run(
    judge: Judge, folder: Path, seed: int, tuned: bool, methods: list[str], done: dict[str, Any]
) -> dict[str, Any]:
    """All methods from one plain run's checkpoint; what `done` holds already is kept."""
    whole = Trajectory.load(folder)
    record = json.loads((folder / "record.json").read_text())
    state = leap(whole, "none", at=AT).leap_state()
    still = {
        "validation": mean(judge.rewards(state, "validation", VALIDATION, seed)),
        "test": mean(judge.rewards(state, "test", TEST, 0)),
    }
    plain = dict(zip(map(str, record["steps"]), record["accuracy"], strict=True))
    result = {**done, "none": still, "plain": plain, "methods": done.get("methods", {})}
    for name in methods:
        if name in TUNED_ONLY and not tuned:
            continue
        if name not in result["methods"] and seed in SLOW.get(name, (seed,)):
            result["methods"][name] = one_method(judge, name, whole, seed, still)
    return result


def main() -> None:
    """Every run that is finished, task by task so that a base is loaded once."""
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=Path, default=default_out("race") / "runs")
    arguments.add_argument("--out", type=Path, default=default_out("race") / "raw")
    arguments.add_argument("--methods", nargs="+", default=[*METHODS, *TUNED_ONLY])
    arguments.add_argument("--rates", type=float, nargs="+", default=[5e-5, 2e-4, 5e-4, 1e-3])
    arguments.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    options = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    one_thread()
    judges: dict[str, Judge] = {}
    for seed in options.seeds:
        for record in sorted(options.runs.glob(f"*/plain-*/seed-{seed}/record.json")):
            folder = record.parent
            task, rate = folder.parent.parent.name, float(folder.parent.name.split("-", 1)[1])
            if rate not in options.rates or (task, rate) in (("chain", 1e-3), ("chain-wrong-rule", 5e-4)):
                continue  # the race's rates: the tuned one differs between the tasks
            out = options.out / task / f"{rate:g}" / f"seed-{seed}.json"
            done = json.loads(out.read_text()) if out.is_file() else {}
            if task not in judges:
                judges[task] = Judge(task)
            judge = judges[task]
            began = time.perf_counter()
            result = one_run(judge, folder, seed, rate == TUNED[task], options.methods, done)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{out}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
