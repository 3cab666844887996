"""What `engines/test_accelerator.py` compares: cases that run on the CPU and on what pretends to be an accelerator.

python tests/pretended_cases.py FOLDER [CASE ...]    # for each case its name, and what came out of both, in JSON
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import check_gpu
import torch
from transformers import TrainerCallback
from trl import RLOOTrainer

from nextrl import extrapolators
from nextrl.engines.offline import choose_alpha
from nextrl.engines.policies.effopd import EffOpd
from nextrl.engines.settings import TrainSettings
from nextrl.engines.trl.callback import LeapCallback
from nextrl.judge.controller_config import ControllerConfig
from nextrl.leaps.leap import leap
from nextrl.runs.loop import ArmSettings, LeapSettings, run_arm
from nextrl.tasks import bases
from nextrl.tasks.bases.device import placed
from nextrl.tasks.evaluate import evaluate
from nextrl.trajectory.trajectory import Trajectory
from pretended_device import DEVICE, accelerator
from trl_runs import TASK, VALIDATION, Breaks, fresh_model, sft_trainer, trainer


class OnTheCpu(TrainerCallback):
    """Sees to it that a leap's callback keeps checkpoints and moments in the CPU's memory, in resumed runs, too."""

    def __init__(self, leaps: LeapCallback) -> None:
        self.leaps = leaps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.leaps._session is not None
        memory = self.leaps._session.memory
        kept = [t for part in (*memory.history.states, *memory.start.moments) for t in part.values()]
        if any(isinstance(t, torch.Tensor) and t.device.type != "cpu" for t in kept):
            raise RuntimeError("checkpoints or moments lie on the accelerator")


def decided(callback: LeapCallback, run: Any) -> Any:
    """What a run came to: its decisions, and how far its weights are from where an adapter begins (B = 0).

    Of a model without an adapter it is the length of all its weights.
    """
    assert {p.device for p in run.model.parameters()} == {device()}
    part = "lora_B" if hasattr(run.model, "peft_config") else ""
    length = sum(float(p.detach().square().sum()) for n, p in run.model.named_parameters() if part in n)
    done = [(d.step, d.alpha, d.back, d.completions) for d in callback.decisions]
    return {"done": done, "rates": [d.learning_rate for d in callback.decisions], "length": length}


def trained(
    folder: Path, callback: LeapCallback, *more: TrainerCallback, resume: int = 0, **options: Any
) -> Any:
    """A run of TRL's under a callback."""
    options = {"model": MODELS.pop(), **options}
    built = trainer(folder, [callback, OnTheCpu(callback), *more], **options)
    built.train(resume_from_checkpoint=str(folder / f"checkpoint-{resume}") if resume else None)
    return decided(callback, built)


def all_weights(folder: Path, callback: LeapCallback, **options: Any) -> Any:
    """A run of TRL's without an adapter; nothing that is remembered of it lies on the accelerator."""
    model = MODELS.pop().unload().requires_grad_(True)

    class StartOnTheCpu(OnTheCpu):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_begin(args, state, control, **kwargs)
            assert self.leaps._session is not None
            if any(t.device.type != "cpu" for t in self.leaps._session.memory.start.state.values()):
                raise RuntimeError("the window's start lies on the accelerator")

    return trained(folder, callback, StartOnTheCpu(callback), model=model, **options)


def supervised(folder: Path, callback: LeapCallback, **options: Any) -> Any:
    """A run of TRL's on demonstrations, under a callback."""
    built = sft_trainer(folder, [callback], model=MODELS.pop(), **options)
    built.train()
    return decided(callback, built)


def resumed(folder: Path, method: str) -> Any:
    """A run that is stopped after 4 steps and goes on; its adapter, moments and memory come from files."""
    options = {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 4}

    def callback() -> LeapCallback:
        named = {"horizon": 1, "alpha": 1.0} if method != "auto" else {}
        return LeapCallback(1 if named else 2, method, **named)

    trained(folder, callback(), max_steps=4, **options)
    return trained(folder, callback(), resume=4, max_steps=6, **options)


def arms(folder: Path) -> Any:
    """The arms of a study, in this package's own trainer: evaluation, shared prefixes, checkpoints on disk."""
    train = TrainSettings(
        steps=6,
        save_every=2,
        prompts_per_step=4,
        completions_per_prompt=4,
        learning_rate=1e-3,
        share_prefixes=True,
    )
    common = {"train": train, "eval_at": (4, 6), "eval_prompts": 20}
    found = LeapSettings(method="secant", horizon=2, alphas=(0.5, 1.0), prompts=8, accept="argmax")
    unseen = LeapSettings(method="secant", horizon=2, alphas=(1.0,), search=False)
    records = [
        run_arm(ArmSettings(name=name, label=name, **common, **own), folder / name, folder / "plain")
        for name, own in {
            "plain": {"kind": "plain", "save": True},
            "leap": {"kind": "leap", "start": 4, "leap": found},
            "merged": {"kind": "leap", "start": 4, "leap": unseen, "merge": True},
            "full": {"kind": "control", "lora": None},
        }.items()
    ]
    return [{"done": r.steps, "rates": r.learning_rate, "length": r.accuracy[-1]} for r in records]


def asked(folder: Path) -> Any:
    """What the command line asks a model for: its accuracy, and which step length it answers best at."""
    train = TrainSettings(
        steps=4, save_every=2, prompts_per_step=4, completions_per_prompt=4, learning_rate=5e-3
    )
    run_arm(
        ArmSettings(
            name="plain", kind="plain", label="plain", train=train, save=True, eval_at=(4,), eval_prompts=20
        ),
        folder,
        folder,
    )

    def model() -> tuple[Any, Any]:
        loaded, tokenizer = bases.load("tiny", "chain")
        return placed(loaded, str(device())), tokenizer

    accuracy = evaluate(*model(), TASK, prompts=40).accuracy
    choice = choose_alpha(leap(Trajectory.load(folder), "secant", 2), *model(), TASK, prompts=16, level=0.0)
    return {"done": [choice.alpha, choice.completions], "length": [accuracy, *choice.means.values()]}


def delivered(folder: Path) -> Any:
    """The leap of `make check-gpu`, and what the rollouts after it say of where they came from."""
    found = check_gpu.Check(check_gpu.DRY, True, folder).leap()
    return [*(found[name] for name in ("step", "exact", "delivered", "swap_noticed")), found["gain"] > 1.0]


def fitted(folder: Path) -> Any:
    """Every method on factors in memory, from the library."""
    draws = torch.Generator().manual_seed(0)
    a0, way = torch.randn(4, 12, generator=draws), torch.randn(8, 4, generator=draws)
    states = []
    for t in range(13):
        b = way * t / 10 + 0.02 * t**0.5 * torch.randn(8, 4, generator=draws)
        a = a0 + 0.01 * t * torch.randn(4, 12, generator=draws)
        a, b = a.to(device()), b.to(device())
        states.append({"m.q": (a, b), "m.k": (a * 1.5, b * 0.7)})
    steps = [10 * t for t in range(13)]
    traj = Trajectory.from_factors(steps, states, scaling=2.0)
    lengths = {}
    for name in extrapolators.names():
        params: dict[str, Any] = {"epochs": 20} if name == "next-paper" else {}
        if extrapolators.tags_of(extrapolators.get(name)).needs_accuracy:
            params["accuracy"] = {s: 0.1 + s / 200 for s in steps}
        made = leap(traj, name, 50, seed=0, **params)
        lengths[name] = [float(made.prediction.delta(m, 1.0).norm()) for m in traj.modules]
    return lengths


def cases() -> dict[str, Callable[[Path], Any]]:
    """Name -> what is done in a folder of its own."""
    fast = {"learning_rate": 1e-3, "max_steps": 6}
    every = ControllerConfig(every=2, goal=1e-30, undo=1e9, alarm=1e9, cooldown=0.0)
    return {
        "fitted": fitted,
        "auto": lambda f: trained(f, LeapCallback(), learning_rate=2e-4, max_steps=6),
        "auto, windows": lambda f: trained(f, LeapCallback(config=every), **fast),
        "auto, taken back": lambda f: trained(f, LeapCallback(), learning_rate=0.5, max_steps=3),
        "auto, NaN": lambda f: trained(f, LeapCallback(config=every), Breaks(5), **fast),
        "auto, RLOO": lambda f: trained(f, LeapCallback(config=every), kind=RLOOTrainer, **fast),
        "auto, beta": lambda f: trained(f, LeapCallback(config=every), beta=0.1, **fast),
        "auto, all weights": lambda f: all_weights(
            f, LeapCallback(config=every), **{**fast, "learning_rate": 1e-4}
        ),
        "auto, all weights, taken back": lambda f: all_weights(
            f, LeapCallback(), learning_rate=0.3, max_steps=3
        ),
        "auto, resumed": lambda f: resumed(f, "auto"),
        "next": lambda f: trained(f, LeapCallback(1, "next", horizon=1, alpha=1.0), **fast),
        "next, resumed": lambda f: resumed(f, "next"),
        "secant, searched": lambda f: trained(
            f, LeapCallback(2, "secant", horizon=2, prompts=16, validation=VALIDATION), **fast
        ),
        "effopd": lambda f: trained(f, LeapCallback(policy=EffOpd(8), validation=VALIDATION), **fast),
        "auto, SFT": lambda f: supervised(f, LeapCallback(config=every), **fast),
        "secant, SFT": lambda f: supervised(f, LeapCallback(2, "secant", horizon=2, prompts=16), **fast),
        "arms": arms,
        "asked": asked,
        "delivered": delivered,
        "two devices": lambda f: float((torch.ones(2, device=device()) + torch.ones(2)).sum()),
    }


MODELS: list[Any] = []
ON_DEVICE = False


def device() -> torch.device:
    """Where a case is run."""
    return DEVICE if ON_DEVICE else torch.device("cpu")


def outcome(case: Callable[[Path], Any], folder: Path) -> Any:
    """What came out of a case, or the error that ended it."""
    MODELS[:] = [fresh_model(), fresh_model()]  # made outside: loading weights is not what is looked at
    try:
        with accelerator() if ON_DEVICE else nullcontext():
            return json.loads(json.dumps(case(folder)))
    except RuntimeError:
        return traceback.format_exc()


if __name__ == "__main__":
    for name, case in cases().items():
        if len(sys.argv) > 2 and name not in sys.argv[2:]:
            continue
        both = []
        for ON_DEVICE in (False, True):
            both.append(outcome(case, Path(sys.argv[1]) / f"{name} {ON_DEVICE}"))
        sys.stdout.write(json.dumps([name, *both]) + "\n")
