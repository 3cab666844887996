"""`auto` on tasks, starts and trainer options that it was not designed on, beside plain runs and other rules.

    python -m studies.grid.tasks            # the bases of the four tasks of this study, once
    python -m studies.grid.run starts       # seven starts, six tasks, controls
    python -m studies.grid.run weights      # all weights in place of an adapter: five starts, six tasks
    python -m studies.grid.run options      # trainer options on one task, `auto` from two starts, plain at three rates
    python -m studies.grid.run watched      # plain runs at four rates: what `auto` would have seen of each window
    python -m studies.grid.table            # of the published records, or of the folder named

Every run is TRL's GRPOTrainer, 200 (starts) or 100 (options) steps of 16 x 8 completions. One JSON record for each; a
second call goes on with what is missing. Designed on seeds 10 to 13 of A, B, `half-nat` and `penalty`, and on seed 10
of the other tasks; reported on others.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from nextrl import LeapCallback
from nextrl.engines.all_weights import trained_in
from nextrl.engines.policies import Auto
from nextrl.engines.policies.effopd import EffOpd
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.trl.trainer import as_dataset, with_adapter
from nextrl.judge.controller import Controller, Look
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import Decision, stay
from nextrl.judge.window import Window
from nextrl.runs.arm import ArmRecord, ArmSettings
from nextrl.runs.loop import one_thread
from nextrl.runs.meter import Meter
from nextrl.tasks import base, bases
from nextrl.tasks.evaluate import evaluate
from studies.folders import default_out, parser
from studies.grid import tasks as own

STARTS = (1e-6, 1e-5, 5e-5, 5e-4, 2e-3, 5e-3, 2e-2)
WHOLE_STARTS, WHOLE_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 5e-3), (1e-4, 2e-4, 5e-4)
LAB, OWN = ("chain", "chain-wrong-rule"), ("partial", "penalty", "sparse", "half-nat")
EVALUATIONS = (20, 40, 60, 100, 150, 200)
AVERAGED = 60  # steps at a run's end whose adapters are averaged, every fifth of them


@dataclass(frozen=True)
class Arm:
    """One run.

    Attributes:
        rule: `auto`, `plain`, `kl` (each step's divergence is held at `goal`), `kl-back` (and a step far beyond it is
            taken back), `effopd` or `watch` (plain, and what `auto` would have seen).
        rate: what it starts from.
        options: of GRPOConfig.
        lora: of LoraSettings; None trains all weights.
        every: steps per window of `auto`.
        twist: what is done to the rewards, see `_reward`.
    """

    group: str
    name: str
    task: str
    rule: str
    rate: float
    seed: int
    steps: int = 200
    options: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] | None = field(default_factory=dict)
    every: int = 10
    twist: str = ""

    @property
    def path(self) -> str:
        """Of its record, below the study's folder."""
        return f"{self.group}/{self.task}/{self.name}/{self.rule}-{self.rate:g}/seed-{self.seed}.json"


class DivergenceRule(Controller):
    """Holds each step's divergence at `goal`, whatever it earns: the control without any judge."""

    back = False

    def checks(self, step: int) -> bool:
        return True

    def step(
        self, step: int, moved: float, share: float = 1.0, resolution: float = 0.0, left: float = 0.0
    ) -> Decision | None:
        if not moved > 0.0:
            return None
        factor = max(0.1, min(1000.0 if step < 3 else 1.5, (self.config.goal / 4 / moved) ** 0.5))
        if self.back and moved > self.config.reckless:
            return replace(stay("taken back"), alpha=-1.0, rate_factor=min(0.5, factor), back="step")
        return replace(stay("rule"), rate_factor=factor)

    def window(self, window: Window, look: Look) -> Decision:
        return stay("never judged")


class DivergenceRuleBack(DivergenceRule):
    """The same, and a reckless step is taken back."""

    back = True


class Watch(Controller):
    """Looks at every window, and does nothing.

    Attributes:
        seen: of each window its last step, mean reward, nats per token, how sure the batch is that its start was
            better, how sure it is that the reward fell, prompts that inform, and the harm added up.
    """

    def __init__(self, config: ControllerConfig) -> None:
        never = {"undo": math.inf, "alarm": math.inf, "harm": math.inf, "sure": math.inf, "patience": 10**9}
        super().__init__(replace(config, cooldown=0.0, **never))
        self.seen: list[list[float]] = []

    def checks(self, step: int) -> bool:
        return False

    @property
    def length(self) -> int:
        return self.config.every

    def window(self, window: Window, look: Look) -> Decision:
        decision = super().window(window, look)
        if back := decision.looks.get(-1.0):
            row = (
                window.reward,
                back.nats_k2,
                back.evidence,
                window.fall,
                back.informative_groups,
                self.harm,
            )
            self.seen.append([window.step, *(round(value, 4) for value in row)])
        return stay("watched")


CONTROLLERS = {"auto": Controller, "kl": DivergenceRule, "kl-back": DivergenceRuleBack, "watch": Watch}


class Average(TrainerCallback):
    """Keeps what a run's last steps trained."""

    def __init__(self) -> None:
        self.states: deque[dict[str, torch.Tensor]] = deque(maxlen=AVERAGED // 5)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 5 == 0:
            self.states.append(trained_in(kwargs["model"]).read())


def _reward(arm: Arm) -> Any:
    task, noise = base.get(arm.task), torch.Generator().manual_seed(arm.seed)
    asked = 0

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        nonlocal asked
        asked += 1
        rewards = [task.reward(c, a) for c, a in zip(completions, answer, strict=True)]
        if arm.twist == "flipped":  # a verifier that is wrong in a fifth of all cases
            flips = torch.rand(len(rewards), generator=noise) < 0.2
            rewards = [1.0 - r if flip else r for r, flip in zip(rewards, flips.tolist(), strict=True)]
        if arm.twist == "shifted":
            rewards = [r * 0.05 - 100.0 for r in rewards]
        if arm.twist == "stricter" and asked > arm.steps // 2:  # half of the right answers no longer count
            rewards = [r if int(a) % 2 else 0.0 for r, a in zip(rewards, answer, strict=True)]
        return rewards

    return reward


def _optimizer(model: Any, arm: Arm) -> Any:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if arm.name == "SGD, momentum .9":
        return torch.optim.SGD(parameters, lr=arm.rate, momentum=0.9)
    if arm.name == "Lion":
        return Lion(parameters, lr=arm.rate)
    if arm.name == "Adafactor":
        return torch.optim.Adafactor(parameters, lr=arm.rate)
    return None


class Lion(torch.optim.Optimizer):
    """Chen et al., "Symbolic discovery of optimization algorithms" (2302.06675), algorithm 2, without decay."""

    def __init__(self, parameters: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            one, two = group["betas"]
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    p.sub_(torch.sign(one * m + (1 - one) * p.grad), alpha=group["lr"])
                    m.mul_(two).add_(p.grad, alpha=1 - two)


def work(arm: Arm, out: Path) -> str:
    """One run; its record is written to `out / arm.path`."""
    path = out / arm.path
    if path.is_file():
        return f"{arm.path}: there already"
    one_thread()
    model, tokenizer = bases.load(own.MODEL if arm.task in OWN else "tiny", arm.task)
    if arm.lora is not None:
        model = with_adapter(model, LoraSettings(**arm.lora), arm.seed)
    settings = TrainSettings(steps=arm.steps, learning_rate=arm.rate, seed=arm.seed)
    evaluations = tuple(step for step in EVALUATIONS if step <= arm.steps)
    described = ArmSettings(
        name=arm.name, kind="auto", label=arm.name, task=arm.task, train=settings, eval_at=evaluations
    )
    record, average = ArmRecord(name=arm.name, kind="auto", label=arm.name), Average()
    meter, callbacks, leaper = Meter(described, tokenizer, record), [], None
    policy = Auto(ControllerConfig(every=arm.every), CONTROLLERS.get(arm.rule, Controller))
    if arm.rule == "effopd":
        leaper = LeapCallback(policy=EffOpd())
    elif arm.rule != "plain":
        leaper = LeapCallback(policy=policy)
    if leaper is not None:
        meter.costs, callbacks = (lambda: leaper.costs), [leaper]
    given: dict[str, Any] = {
        "per_device_train_batch_size": 128,
        "num_generations": 8,
        "lr_scheduler_type": "constant",
        "beta": 0.0,
        **arm.options,
    }
    config = GRPOConfig(
        output_dir=str(out / "scratch"),
        max_steps=arm.steps,
        learning_rate=arm.rate,
        max_completion_length=base.get(arm.task).max_completion_length,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=arm.seed,
        dataloader_pin_memory=False,
        **given,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=_reward(arm),
        args=config,
        train_dataset=as_dataset(base.get(arm.task).examples("train")),
        processing_class=tokenizer,
        optimizers=(_optimizer(model, arm), None),
        callbacks=[*callbacks, meter, average],
    )
    trainer.remove_callback(PrinterCallback)
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    states = list(average.states)
    trained_in(trainer.model).write({n: torch.stack([s[n] for s in states]).mean(0) for n in states[0]})
    averaged = evaluate(trainer.model, tokenizer, base.get(arm.task), prompts=1000)
    kept: dict[str, Any] = {
        "arm": asdict(arm),
        "seconds": round(seconds, 1),
        "trained_s": round(record.seconds[-1], 1),
    }
    kept |= record.model_dump(include={"steps", "accuracy", "se", "learning_rate"})
    kept |= {"averaged": averaged.accuracy}
    if leaper is not None:
        costs = leaper.costs
        kept |= {"callback_s": round(costs.search_seconds, 2), "searched": costs.search_completions}
        if arm.rule == "watch":
            kept["seen"] = policy.controller.seen
        if arm.rule == "effopd":
            kept["decisions"] = [[d.step, d.alpha, d.reason] for d in leaper.decisions]
        if arm.rule == "auto":
            acted = [d for d in leaper.decisions if d.back or d.reason != "nothing speaks for another rate"]
            kept["decisions"] = [[d.step, d.back, d.learning_rate, d.reason] for d in acted]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept) + "\n")
    ends = " ".join(f"{s}:{a:.3f}" for s, a in zip(record.steps, record.accuracy, strict=True))
    return f"{arm.path}  {ends}  averaged {averaged.accuracy:.3f}  lr {record.learning_rate[-1]:.2g}  {seconds:.0f} s"


def starts(seeds: list[int]) -> Iterator[Arm]:
    """`auto` from seven starts on six tasks, plain at three rates, and the rule without a judge."""
    for seed in seeds:
        for task in (*LAB, *OWN):
            for rate in STARTS:
                yield Arm("starts", "default", task, "auto", rate, seed)
            for rate in (1e-3, 2e-3, 5e-3):
                yield Arm("starts", "default", task, "plain", rate, seed)
            for rate in (1e-5, 2e-2):
                yield Arm("starts", "default", task, "kl-back", rate, seed)
            yield Arm("starts", "default", task, "kl", 2e-2, seed)
            for rate in (1e-5, 5e-4, 2e-3):
                yield Arm("starts", "default", task, "effopd", rate, seed)


def weights(seeds: list[int]) -> Iterator[Arm]:
    """All weights: `auto` from five starts on six tasks, and plain at three rates."""
    for seed in seeds:
        for task in (*LAB, *OWN):
            for rule, rates in (("auto", WHOLE_STARTS), ("plain", WHOLE_RATES)):
                for rate in rates:
                    yield Arm("weights", "default", task, rule, rate, seed, lora=None)


OPTIONS: dict[str, dict[str, Any]] = {
    "r 4": {"lora": {"r": 4, "alpha": 8}},
    "r 64, alpha 128": {"lora": {"r": 64, "alpha": 128}},
    "r 64, alpha 64, rsLoRA": {"lora": {"r": 64, "alpha": 64, "use_rslora": True}},
    "batch 16": {"options": {"per_device_train_batch_size": 16}},
    "batch 1024": {"options": {"per_device_train_batch_size": 1024}, "steps": 40},
    "windows of 5": {"every": 5},
    "windows of 20": {"every": 20},
    "linear, warm-up 10": {"options": {"lr_scheduler_type": "linear", "warmup_steps": 10}},
    "linear": {"options": {"lr_scheduler_type": "linear"}},
    "cosine, warm-up 10": {"options": {"lr_scheduler_type": "cosine", "warmup_steps": 10}},
    "beta .04": {"options": {"beta": 0.04}},
    "num_iterations 2": {"options": {"num_iterations": 2}},
    "steps_per_generation 4": {"options": {"steps_per_generation": 4, "per_device_train_batch_size": 32}},
    "beta1 .95": {"options": {"adam_beta1": 0.95}},
    "SGD, momentum .9": {},
    "Lion": {},
    "Adafactor": {},
    "flipped rewards": {"twist": "flipped"},
    "rewards times .05 minus 100": {"twist": "shifted"},
    "a reward that turns stricter": {"twist": "stricter"},
}
PLAIN = {
    "SGD, momentum .9": (0.1, 1.0, 10.0),
    "Lion": (2e-4, 5e-4, 1e-3),
    "r 64, alpha 64, rsLoRA": (1e-4, 3e-4, 1e-3),
}


def watched(seeds: list[int]) -> Iterator[Arm]:
    """Plain runs at four rates, with an eye on each window."""
    for seed in seeds:
        for task in (*LAB, *OWN):
            for rate in (5e-4, 1e-3, 2e-3, 5e-3):
                yield Arm("watched", "default", task, "watch", rate, seed)


def options(seeds: list[int]) -> Iterator[Arm]:
    """Trainer options on task A: `auto` from two starts, and plain at three rates."""
    for seed in seeds:
        for name, own_options in OPTIONS.items():
            given = {"steps": 100, **own_options}
            for rule, rates in (("auto", (1e-5, 2e-2)), ("plain", PLAIN.get(name, (5e-4, 1e-3, 2e-3)))):
                for rate in rates:
                    yield Arm("options", name, "chain", rule, rate, seed, **given)


GROUPS = {"starts": starts, "weights": weights, "options": options, "watched": watched}


def main() -> None:
    """Run what is missing, two at a time."""
    arguments = parser(__doc__)
    arguments.add_argument("group", choices=[*GROUPS])
    arguments.add_argument("--out", type=Path, default=default_out("grid"), help="records")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments.add_argument("--tasks", nargs="+", default=[])
    arguments.add_argument("--only", nargs="+", default=[], help="rules, such as auto")
    arguments.add_argument("--names", nargs="+", default=[])
    arguments.add_argument("--rates", type=float, nargs="+", default=[])
    arguments.add_argument("--workers", type=int, default=2)
    given = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    arms = GROUPS[given.group](given.seeds)
    jobs = [
        arm
        for arm in arms
        if (not given.tasks or arm.task in given.tasks)
        and (not given.only or arm.rule in given.only)
        and (not given.names or arm.name in given.names)
        and (not given.rates or arm.rate in given.rates)
    ]
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        for line in pool.map(work, jobs, [given.out] * len(jobs)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
