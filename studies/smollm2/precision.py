"""CPU seconds of SmolLM2's forward and backward pass in float32, with bf16 products, and with a bf16 base.

    OMP_NUM_THREADS=1 python -m studies.smollm2.precision

16 rows of 40 tokens, LoRA of rank 8 on all linear layers, logits at the last 5; the second of two passes counts.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.trainer import with_adapter
from nextrl.tasks import bases
from studies.folders import parser


def measure(name: str, model: Any) -> None:
    """Print the seconds of two passes."""
    ids = torch.randint(3, 40_000, (16, 40))
    for attempt in (1, 2):
        begun = time.process_time()
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=5).logits
        forward = time.process_time()
        logits.float().logsumexp(-1).sum().backward()
        backward = time.process_time()
        print(f"{name}, pass {attempt}: forward {forward - begun:.2f} s, backward {backward - forward:.2f} s")


def main() -> None:
    """The three settings."""
    parser(__doc__).parse_args()
    torch.set_num_threads(1)
    base, _ = bases.load("smollm2-135m", "short-sums")
    model = with_adapter(base, LoraSettings(), 0)
    measure("float32", model)
    torch.set_float32_matmul_precision("medium")
    measure("float32, products in bf16", model)
    torch.set_float32_matmul_precision("highest")
    base, _ = bases.load("smollm2-135m", "short-sums")
    measure("bf16 base, float32 adapter", with_adapter(base.to(torch.bfloat16), LoraSettings(), 0))


if __name__ == "__main__":
    main()
