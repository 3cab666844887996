"""What passes in half precision add to the nats that a change of the weights shows, on SmolLM2-135M.

    OMP_NUM_THREADS=1 python -m studies.auto.rounding    # the table of docs/precision.md; some ten minutes on one core

32 prompts of short sums with their answers, the last 5 tokens of each. Every entry of the adapter's B goes from 0 to
the size given, with a sign that is drawn once; nats per token are half the mean square of the difference of
log-probabilities.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.trainer import with_adapter
from nextrl.tasks import base, bases
from studies.folders import parser

SIZES = (1e-8, 1e-7, 1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
TOKENS = 5


def log_probabilities(model: Any, batch: Any, autocast: bool) -> torch.Tensor:
    """Of the last tokens of each row: (rows, TOKENS) float32."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(**batch, logits_to_keep=TOKENS + 1).logits[:, :-1].float()
    return torch.gather(logits.log_softmax(-1), -1, batch["input_ids"][:, -TOKENS:, None])[..., 0]


def nats(model: Any, batch: Any, autocast: bool) -> list[float]:
    """What each size shows."""
    draws = torch.Generator().manual_seed(1)
    factors = [p for name, p in model.named_parameters() if "lora_B" in name]
    signs = [torch.randint(0, 2, p.shape, generator=draws) * 2.0 - 1.0 for p in factors]
    before, found = log_probabilities(model, batch, autocast), []
    for size in SIZES:
        for p, sign in zip(factors, signs, strict=True):
            p.data.copy_(size * sign)
        change = log_probabilities(model, batch, autocast) - before
        found.append(float(change.double().square().mean() / 2))
    return found


def main() -> None:
    """Print the table."""
    parser(__doc__).parse_args()
    torch.set_num_threads(1)
    model, tokenizer = bases.load("smollm2-135m", "short-sums")
    examples = base.get("short-sums").examples("train")[:32]
    batch = tokenizer([e.prompt + e.answer for e in examples], return_tensors="pt", padding=True)
    rows = {}
    for name, dtype, autocast in (
        ("float32", torch.float32, False),
        ("bfloat16 by autocast", torch.float32, True),
        ("base in bfloat16", torch.bfloat16, False),
    ):
        adapted = with_adapter(copy.deepcopy(model).to(dtype), LoraSettings(), seed=0)
        rows[name] = nats(adapted, batch, autocast)
    print("| size | " + " | ".join(rows) + " |\n|" + "---|" * (len(rows) + 1))
    for size, *row in zip(SIZES, *rows.values(), strict=True):
        print(f"| {size:g} | " + " | ".join(f"{value:.2g}" for value in row) + " |")


if __name__ == "__main__":
    main()
