"""Short sums for a small language model: four worked sums, then one to answer.

`12+5=17\\n20-6=14\\n9+8=17\\n31-9=22\\n27-8=` is answered by `19`. Operands run from 3 to 30, the operation is `+`
or `-`, and a difference is never negative: 1,190 prompts. SmolLM2-135M-Instruct samples the right answer about one
time in ten before any training, and an answer has at most two digits, so that a step is cheap.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from functools import lru_cache

from nextrl.tasks.base import Example, Split, register

SHOTS = "12+5=17\n20-6=14\n9+8=17\n31-9=22\n"
OPERANDS = range(3, 31)


def _split_of(prompt: str) -> Split:
    """By crc32 of the prompt modulo 10, in larger shares than other tasks: there are only 1,190 prompts to share."""
    bucket = zlib.crc32(prompt.encode()) % 10
    return "test" if bucket < 3 else "validation" if bucket < 5 else "train"


@lru_cache(maxsize=1)
def _all_examples() -> dict[Split, tuple[Example, ...]]:
    splits: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    for left in OPERANDS:
        for right in OPERANDS:
            sums = [(f"{left}+{right}=", left + right)]
            if right <= left:
                sums.append((f"{left}-{right}=", left - right))
            for text, value in sums:
                prompt = SHOTS + text
                splits[_split_of(prompt)].append(Example(prompt, str(value)))
    for name, examples in splits.items():
        random.Random(f"short-sums-{name}").shuffle(examples)
    return {name: tuple(examples) for name, examples in splits.items()}


@dataclass(frozen=True)
class ShortSumsTask:
    """`Task` of one sum or difference; reward 1 if the completion's first line is the answer, else 0."""

    name: str = "short-sums"
    max_completion_length: int = 4

    def examples(self, split: Split) -> list[Example]:
        """Examples of a split in a fixed shuffled order."""
        return list(_all_examples()[split])

    def reward(self, completion: str, answer: str) -> float:
        """1.0 if the first line of the completion, spaces aside, is the answer, else 0.0."""
        return float(completion.split("\n", 1)[0].strip() == answer)


register("short-sums", ShortSumsTask)
