"""How far do windows, and leaps along them, move the policy? The table of docs/auto-evidence.md, "Why the divergence".

    python -m studies.auto.divergence            # about two minutes on two cores

Plain GRPO runs of both tasks at four rates, one seed. For windows of 10 steps and several alphas: divergence in nats a
token, over the whole vocabulary, from the policy at the window's end, and sampled accuracy after the leap in brackets,
both on 64 held-out prompts.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.live_weights import State, along
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.trl.trainer import build_trainer, with_adapter
from nextrl.runs.loop import one_thread
from nextrl.tasks import get
from nextrl.tasks.bases import tiny
from nextrl.tasks.evaluate import seeded
from studies.folders import parser

EVERY, PROMPTS = 10, 64
RATES = (5e-5, 2e-4, 1e-3, 5e-3)
STEPS = (10, 30, 40, 100)
ALPHAS = (-1, 2, 8, 32, 128)


class Keep(TrainerCallback):
    """The adapter at the end of every window."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.adapter = LiveAdapter(kwargs["model"])
        self.states: dict[int, State] = {0: self.adapter.read()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % EVERY == 0:
            self.states[state.global_step] = self.adapter.read()


def table(task_name: str, rate: float) -> list[str]:
    """One line a step."""
    one_thread()
    task = get(task_name)
    base, tokenizer = tiny.load(task_name)
    model, kept = with_adapter(base, LoraSettings(), 0), Keep()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(steps=max(STEPS), learning_rate=rate, seed=3)
        build_trainer(model, tokenizer, task, settings, Path(folder), save=False, callbacks=[kept]).train()
    examples = task.examples("validation")[:PROMPTS]
    prompts = tokenizer([e.prompt for e in examples], return_tensors="pt", padding=True)
    width = prompts["input_ids"].shape[1]

    def sample() -> tuple[torch.Tensor, float]:
        with seeded(0), torch.no_grad():
            ids = model.generate(
                **prompts, do_sample=True, top_k=0, max_new_tokens=task.max_completion_length
            )
        texts = tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
        return ids, sum(task.reward(t, e.answer) for t, e in zip(texts, examples, strict=True)) / PROMPTS

    def distribution(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(model(input_ids=ids).logits[:, width - 1 : -1], -1)

    lines = []
    for step in STEPS:
        kept.adapter.write(kept.states[step])
        ids, accuracy = sample()
        mask, p = (ids[:, width:] != tokenizer.pad_token_id).float(), distribution(ids)
        cells = []
        for alpha in ALPHAS:
            kept.adapter.write(along(kept.states[step - EVERY], kept.states[step], alpha))
            nats = ((p.exp() * (p - distribution(ids))).sum(-1) * mask).sum() / mask.sum()
            cells.append(f"{nats:.4f} ({sample()[1]:.2f})")
        lines.append(f"| {task_name} {rate:g} | {step} | {accuracy:.2f} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Both tasks, all rates, two at a time."""
    parser(__doc__).parse_args()
    print("| task, rate | step | accuracy | " + " | ".join(f"alpha {a}" for a in ALPHAS) + " |")
    print("|---|---|---|" + "---|" * len(ALPHAS))
    runs = [(task, rate) for task in ("chain", "chain-wrong-rule") for rate in RATES]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for lines in pool.map(table, *zip(*runs, strict=True)):
            print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
