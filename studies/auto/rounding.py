"""What passes in half precision add to the nats that a change of the weights shows, on SmolLM2-135M.

    OMP_NUM_THREADS=1 python -m studies.auto.rounding            # any change; some minutes on one core
    OMP_NUM_THREADS=1 python -m studies.auto.rounding --steps    # first steps, told apart; some minutes as well

Prompts of short sums with their answers (32, with --steps 12), the last 5 tokens of each; nats per token are half the
mean square of the difference of log-probabilities. Every entry of the adapter's B goes from 0 to the size given, with a
sign that is drawn once; with --steps it is the sign of a gradient's, as in Adam's first step at that rate, and what
`auto` tells apart stands beside what passes in float32 show. `docs/precision.md` has the tables.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nextrl.engines.precision import resolution
from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.trainer import with_adapter
from nextrl.judge.rounding import tell_apart
from nextrl.tasks import base, bases
from studies.folders import parser

SIZES = (1e-8, 1e-7, 1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
RATES = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4)
TOKENS = 5


class Passes:
    """A model with an adapter, and what its passes show of changes of B.

    Args:
        model: in float32.
        dtype: of the base that it is copied to.
        autocast: whether passes are autocast to bfloat16.
    """

    def __init__(self, model: Any, batch: Any, dtype: torch.dtype, autocast: bool) -> None:
        self._model = with_adapter(copy.deepcopy(model).to(dtype), LoraSettings(), seed=0)
        self._batch, self._autocast = batch, autocast
        self.factors = [p for name, p in self._model.named_parameters() if "lora_B" in name]
        self._before = self._log_probabilities().detach()

    def _log_probabilities(self) -> Tensor:
        """Of the last tokens of each row: (rows, TOKENS) float32."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._autocast):
            logits = self._model(**self._batch, logits_to_keep=TOKENS + 1).logits[:, :-1].float()
        return torch.gather(logits.log_softmax(-1), -1, self._batch["input_ids"][:, -TOKENS:, None])[..., 0]

    def nats(self, size: float, signs: list[Tensor]) -> float:
        """What B = size times the signs shows."""
        with torch.no_grad():
            for p, sign in zip(self.factors, signs, strict=True):
                p.copy_(size * sign)
            change = self._log_probabilities() - self._before
        return float(change.double().square().mean() / 2)

    def ascent(self, seed: int) -> list[Tensor]:
        """The signs of B's gradient at 0, for advantages that are drawn."""
        for p in self.factors:
            p.data.zero_()
        advantages = torch.randn(len(self._before), generator=torch.Generator().manual_seed(seed))
        (self._log_probabilities().mean(1) * advantages).mean().backward()
        return [p.grad.sign() for p in self.factors]


def made(rows: int, dtype: torch.dtype = torch.float32, autocast: bool = False) -> Passes:
    """Passes over so many prompts."""
    model, tokenizer = bases.load("smollm2-135m", "short-sums")
    examples = base.get("short-sums").examples("train")[:rows]
    batch = tokenizer([e.prompt + e.answer for e in examples], return_tensors="pt", padding=True)
    return Passes(model, batch, dtype, autocast)


KINDS: dict[str, Callable[[int], Passes]] = {
    "float32": made,
    "bfloat16 by autocast": lambda rows: made(rows, autocast=True),
    "base in bfloat16": lambda rows: made(rows, torch.bfloat16),
}


def changes() -> None:
    """Any change: what each kind of passes shows, by its size."""
    print("| size | " + " | ".join(KINDS) + " |\n|" + "---|" * (len(KINDS) + 1))
    kinds, draws = [make(32) for make in KINDS.values()], torch.Generator().manual_seed(1)
    signs = [torch.randint(0, 2, p.shape, generator=draws) * 2.0 - 1.0 for p in kinds[0].factors]
    for size in SIZES:
        print(
            f"| {size:g} | " + " | ".join(f"{kind.nats(size, signs):.2g}" for kind in kinds) + " |",
            flush=True,
        )


def steps() -> None:
    """First steps: what float32 shows; of the others, what they show and what is told apart."""
    exact, *half = (make(12) for make in KINDS.values())
    columns = [f"{name}: {what}" for name in list(KINDS)[1:] for what in ("shown", "told")]
    print("| rate | float32 | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 2))
    signs = exact.ascent(seed=3)
    for rate in RATES:
        cells = [f"{exact.nats(rate, signs):.2g}"]
        for kind in half:

            def read(alpha: float, kind: Passes = kind, rate: float = rate) -> float:
                return kind.nats(alpha * rate, signs)

            shown = read(1.0)
            told = tell_apart(read, resolution(torch.bfloat16), shown)
            cells += [f"{shown:.2g}", f"{'at most ' if told.hidden else ''}{told.nats:.2g}"]
        print(f"| {rate:g} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the table asked for."""
    arguments = parser(__doc__)
    arguments.add_argument("--steps", action="store_true", help="first steps, told apart")
    torch.set_num_threads(1)
    if arguments.parse_args().steps:
        steps()
    else:
        changes()


if __name__ == "__main__":
    main()
