"""How far do windows of plain SmolLM2 runs move the policy? Nats per token, from the checkpoints of run.py.

    python -m studies.smollm2.divergence

KL(policy at a window's end || at its start) over the whole vocabulary, on the completions that the former samples for
64 validation prompts.
"""

from __future__ import annotations

from pathlib import Path

import torch

from nextrl import Trajectory
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.shared_prefix import share_prefixes
from nextrl.engines.trl.trainer import with_adapter
from nextrl.leaps.leap import leap
from nextrl.runs.loop import one_thread
from nextrl.tasks import bases, get
from nextrl.tasks.evaluate import seeded
from studies.folders import default_out, parser

TASK, EVERY, PROMPTS, STEPS = "short-sums", 10, 64, (10, 20, 30, 40, 60, 100)


def main() -> None:
    """One line an arm and step."""
    arguments = parser(__doc__)
    runs = default_out("smollm2") / "runs" / TASK / "seed-0"
    arguments.add_argument("--runs", type=Path, default=runs, help="folder that holds the arms' checkpoints")
    arguments.add_argument("--arms", nargs="+", default=["plain-1e-5", "plain-3e-4"])
    options = arguments.parse_args()
    one_thread()
    base, tokenizer = bases.load("smollm2-135m", TASK)
    model = with_adapter(base, LoraSettings(), 0).eval()
    share_prefixes(model)
    adapter, task = LiveAdapter(model), get(TASK)
    fresh = adapter.read()
    texts = [example.prompt for example in task.examples("validation")[:PROMPTS]]
    prompts = tokenizer(texts, return_tensors="pt", padding=True)
    width, length = prompts["input_ids"].shape[1], task.max_completion_length
    for arm in options.arms:
        whole = Trajectory.load(options.runs / arm)
        for step in STEPS:
            start, end = (
                leap(whole, "none", at=t).leap_state() if t else fresh for t in (step - EVERY, step)
            )
            adapter.write(end)
            with seeded(0), torch.no_grad():
                ids = model.generate(**prompts, do_sample=True, top_k=0, max_new_tokens=length)
            mask = (ids[:, width:] != tokenizer.pad_token_id).long()
            logps = []
            for state in (end, start):
                adapter.write(state)
                with torch.no_grad():
                    attended = torch.cat([prompts["attention_mask"], mask], 1)
                    logits = model(input_ids=ids, attention_mask=attended).logits[:, width - 1 : -1]
                logps.append(logits.log_softmax(-1))
            nats = ((logps[0].exp() * (logps[0] - logps[1])).sum(-1) * mask).sum() / mask.sum()
            print(f"{arm} {step}: {nats:.3f}", flush=True)


if __name__ == "__main__":
    main()
