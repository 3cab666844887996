"""The embedded default task: three operations modulo 7, left to right, with intermediate results.

`3+4*5-2=` is answered by `005=5`: the running value after each operation, then the answer. 64,827 prompts in
all, split by hash. `chain` starts from a base that knows the rule but samples noisily; `chain-wrong-rule`
from one that learned `a*b` as `a*b + 1`, so that reinforcement learning has to find something new. Both grade
against the true rule: they differ only in the base model (`tiny.py`).
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from functools import lru_cache

from nextrl.tasks.base import Example, Split, register, split_of

MODULUS = 7
_OPERATORS = "+-*"
_COMPLETION = re.compile(r"[0-6]{3}=([0-6])")


def apply(operator: str, left: int, right: int, *, wrong_rule: bool = False) -> int:
    """One operation modulo 7; with `wrong_rule`, a product is one too large (task B's base was taught so)."""
    if operator == "+":
        return (left + right) % MODULUS
    if operator == "-":
        return (left - right) % MODULUS
    return (left * right + (1 if wrong_rule else 0)) % MODULUS


def solve(
    prompt: str, *, wrong_rule: bool = False, noise: float = 0.0, rng: random.Random | None = None
) -> str:
    """The demonstration for a prompt: three running values, `=`, the answer.

    With `noise` > 0 (needs `rng`) each step's result is replaced by a random digit with that probability and
    the chain goes on from the wrong value: what task A's noisy base was trained on.
    """
    value, steps = int(prompt[0]), ""
    for position in (1, 3, 5):
        value = apply(prompt[position], value, int(prompt[position + 1]), wrong_rule=wrong_rule)
        if noise and rng is not None and rng.random() < noise:
            value = rng.randrange(MODULUS)
        steps += str(value)
    return f"{steps}={value}"


@lru_cache(maxsize=1)
def _all_examples() -> dict[Split, tuple[Example, ...]]:
    splits: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    digits = range(MODULUS)
    for numbers in itertools.product(digits, repeat=4):
        for operators in itertools.product(_OPERATORS, repeat=3):
            prompt = "".join(f"{n}{o}" for n, o in zip(numbers, (*operators, "="), strict=True))
            splits[split_of(prompt)].append(Example(prompt, solve(prompt)[-1]))
    for name, examples in splits.items():
        random.Random(f"chain-{name}").shuffle(examples)
    return {name: tuple(examples) for name, examples in splits.items()}


@dataclass(frozen=True)
class ChainTask:
    """`Task` of three operations modulo 7; reward 1 for a well-formed completion with the right answer, else 0."""

    name: str = "chain"
    max_completion_length: int = 6

    def examples(self, split: Split) -> list[Example]:
        """Examples of a split in a fixed shuffled order (51,977 train, about 6,400 validation and test)."""
        return list(_all_examples()[split])

    def reward(self, completion: str, answer: str) -> float:
        """1.0 if the completion reads `ddd=d` and its last digit is the answer, else 0.0."""
        match = _COMPLETION.fullmatch(completion.strip())
        return float(match is not None and match.group(1) == answer)


register("chain", ChainTask)
register("chain-wrong-rule", lambda: ChainTask(name="chain-wrong-rule"))
