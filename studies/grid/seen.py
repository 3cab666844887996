"""Plain GRPO on the four tasks of `studies/grid/tasks.py` at several rates: reward, and nats per window of ten steps.

    python -m studies.grid.seen half-nat --rates 5e-4 1e-3

One line per run. The nats are mean over completion tokens of (log-ratio)^2 / 2 between theta_T and theta_{T-10}, on
128 completions sampled at theta_T.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.trl.trainer import build_trainer, with_adapter
from nextrl.runs.arm import ArmRecord, ArmSettings
from nextrl.runs.loop import one_thread
from nextrl.runs.meter import Meter
from nextrl.tasks import base, bases
from nextrl.tasks.evaluate import inference, sample, seeded
from studies.folders import parser
from studies.grid.tasks import MODEL, TASKS

EVALUATIONS = (20, 40, 60, 100, 150, 200)


class Nats(TrainerCallback):
    """How far each window of ten steps moved the policy."""

    def __init__(self, task: str, tokenizer: Any) -> None:
        self._task, self._tokenizer, self.nats = base.get(task), tokenizer, list[float]()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the start."""
        self._adapter = LiveAdapter(kwargs["model"])
        self._start = self._adapter.read()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure a window that ends here."""
        if state.global_step % 10:
            return
        examples = self._task.examples("train")
        prompts = [examples[(state.global_step * 16 + i // 8) % len(examples)].prompt for i in range(128)]
        end, model = self._adapter.read(), kwargs["model"]
        with seeded(state.global_step):
            found = sample(model, self._tokenizer, prompts, max_new_tokens=self._task.max_completion_length)

        def logps() -> torch.Tensor:
            with inference(model):
                logits = model(input_ids=found.ids, attention_mask=found.attention).logits[:, :-1]
            picked = logits.float().log_softmax(-1).gather(2, found.ids[:, 1:, None])[..., 0]
            return picked[:, -found.mask.size(1) :]

        after = logps()
        self._adapter.write(self._start)
        before = logps()
        self._adapter.write(end)
        self.nats.append(float(((after - before).square() / 2 * found.mask).sum() / found.mask.sum()))
        self._start = end


def work(task: str, rate: float, seed: int) -> str:
    """One run, as a line."""
    one_thread()
    settings = TrainSettings(steps=200, learning_rate=rate, seed=seed)
    arm = ArmSettings(
        name="plain",
        kind="plain",
        label="plain",
        task=task,
        model=MODEL,
        train=settings,
        eval_at=EVALUATIONS,
        eval_prompts=500,
    )
    model, tokenizer = bases.load(MODEL, task)
    record = ArmRecord(name="plain", kind="plain", label="plain")
    nats, meter = Nats(task, tokenizer), Meter(arm, tokenizer, record)
    build_trainer(
        with_adapter(model, LoraSettings(), seed),
        tokenizer,
        base.get(task),
        settings,
        Path(gettempdir()) / "nextrl-studies" / "grid-seen",
        save=False,
        callbacks=[nats, meter],
    ).train()
    curve = " ".join(f"{s}:{a:.3g}" for s, a in zip(record.steps, record.accuracy, strict=True))
    ends = f"greedy {record.greedy[0]:.3g} -> {record.greedy[-1]:.3g}"
    return f"{task} {rate:g} {seed}  {curve}  {ends}  nats {' '.join(f'{n:.2g}' for n in nats.nats)}"


def main() -> None:
    """Run the rates asked for, one after the other."""
    arguments = parser(__doc__)
    arguments.add_argument("tasks", nargs="*", default=list(TASKS))
    arguments.add_argument("--rates", type=float, nargs="+", default=[2e-4, 5e-4, 1e-3, 2e-3, 5e-3])
    arguments.add_argument("--seed", type=int, default=10)
    options = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    for task in options.tasks:
        for rate in options.rates:
            print(work(task, rate, options.seed), flush=True)


if __name__ == "__main__":
    main()
