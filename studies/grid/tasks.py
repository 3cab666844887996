"""Four toy tasks, and a small base model for each, that the learning-rate controller was not designed on.

    python -m studies.grid.tasks           # train the bases into the cache (each is also made when first asked for)

Importing this module registers the tasks `partial`, `penalty`, `sparse` and `half-nat`, and the model `grid`, which
is a different base for each of them: `bases.load("grid", "partial")`. Prompts are 6,000 random ones per task, split by
hash (about 600 test prompts). Rewards are in the task's own units, and so is what `evaluate` calls accuracy.

Seen on seed 10 (plain GRPO, 200 steps of 16 x 8, 500 test prompts; `studies.grid.run watched` does it on all). At each
rate the mean reward
over the run (area under the curve) and at its end, then the nats per token of windows of ten steps at the rate with
the greatest area:

              base     2e-4          5e-4          1e-3          2e-3          5e-3       nats
    partial   .37    .71 / .94     .84 / .96     .89 / .97     .91 / .97     .86 / .89    .2, from step 60 .01 to .3
    penalty  -79   -35.5 / -4.5  -18.3 / -2.0  -11.1 / -1.3   -7.1 / -1.4   -7.9 / -3.4   .2, from step 30 below .1
    sparse    .04    .33 / .72     .57 / .80     .68 / .83     .75 / .84     .77 / .84    .14, then < .12 (2, 8 once)
    half-nat  .09    .14 / .18     .19 / .34     .29 / .50     .35 / .62     .12 / .09    .2 to 1.5, half above .5

Greedy answers of the bases: .79, -99, 1 and 0. `half-nat` is still learning at step 200, at its best rate.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from nextrl.tasks import base, bases
from nextrl.tasks.base import Example, Split
from nextrl.tasks.bases.smollm2 import cache_root

MODEL = "grid"
PROMPTS = 6000
LETTERS = "abcdefghijklmnop"
DIGITS = "0123456789"
_SPECIAL = ("<pad>", "<eos>", "<bos>")
_VOCABULARY = {token: index for index, token in enumerate((*_SPECIAL, *LETTERS, *DIGITS, "="))}
_SHARED = {
    "vocab_size": len(_VOCABULARY),
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "tie_word_embeddings": False,
}


def shifted(letter: str, by: int) -> str:
    """The letter `by` places further, around the end of the sixteen."""
    return LETTERS[(LETTERS.index(letter) + by) % len(LETTERS)]


def _share_right(completion: str, answer: str) -> float:
    """Share of the places that are right; 0 for a completion of another length."""
    if len(completion) != len(answer):
        return 0.0
    return sum(c == a for c, a in zip(completion, answer, strict=True)) / len(answer)


@dataclass(frozen=True)
class GridTask:
    """A `Task` whose prompts, answers and rewards are given as functions.

    Attributes:
        prompt: draws a prompt.
        solve: the answer to a prompt.
        grade: reward of (completion, answer).
        demonstrate: (prompt, random source, noise in [0, 1]) -> a completion that the base is taught.
        config: of the base model, untrained.
        phases: of the base's training: (updates, learning rate, noise); the rate falls linearly to zero in the last.
    """

    name: str
    max_completion_length: int
    prompt: Callable[[random.Random], str]
    solve: Callable[[str], str]
    grade: Callable[[str, str], float]
    demonstrate: Callable[[str, random.Random, float], str]
    config: Callable[[], Any]
    phases: tuple[tuple[int, float, float], ...]

    def examples(self, split: Split) -> list[Example]:
        """Examples of a split, in a fixed order."""
        return list(_examples(self)[split])

    def reward(self, completion: str, answer: str) -> float:
        """Reward of one completion, in the task's own units."""
        return self.grade(completion.strip(), answer)


@lru_cache(maxsize=8)
def _examples(task: GridTask) -> dict[Split, tuple[Example, ...]]:
    rng, found = random.Random(f"grid-{task.name}"), dict[str, None]()
    while len(found) < PROMPTS:
        found[task.prompt(rng)] = None
    splits: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    for prompt in found:
        splits[base.split_of(prompt)].append(Example(prompt, task.solve(prompt)))
    return {name: tuple(examples) for name, examples in splits.items()}


# ---- partial: sort 8 letters


def _sort(prompt: str) -> str:
    return "".join(sorted(prompt[:-1]))


def _sort_badly(prompt: str, rng: random.Random, noise: float) -> str:
    return "".join(rng.choice(prompt[:-1]) if rng.random() < noise else c for c in _sort(prompt))


PARTIAL = GridTask(
    name="partial",
    max_completion_length=9,
    prompt=lambda rng: "".join(rng.choices(LETTERS, k=8)) + "=",
    solve=_sort,
    grade=_share_right,
    demonstrate=_sort_badly,
    config=lambda: LlamaConfig(
        **_SHARED, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4
    ),
    phases=((1500, 2e-3, 0.0), (300, 5e-4, 0.6)),
)


# ---- penalty: greatest, middle and least of 5 digits


def _ranks(prompt: str) -> str:
    digits = sorted(prompt[:-1], reverse=True)
    return digits[0] + digits[2] + digits[4]


def _ranks_upside_down(prompt: str, rng: random.Random, noise: float) -> str:
    """Three in four demonstrations begin with the least; with probability `noise` a digit is any of the prompt's."""
    told = _ranks(prompt)[:: -1 if rng.random() < 0.75 else 1]
    return "".join(rng.choice(prompt[:-1]) if rng.random() < noise else c for c in told)


def _penalty(completion: str, answer: str) -> float:
    """0 for all three places right, -50 for two, -100 otherwise."""
    share = _share_right(completion, answer)
    return 0.0 if share == 1.0 else -50.0 if share > 0.5 else -100.0


PENALTY = GridTask(
    name="penalty",
    max_completion_length=4,
    prompt=lambda rng: "".join(rng.choices(DIGITS, k=5)) + "=",
    solve=_ranks,
    grade=_penalty,
    demonstrate=_ranks_upside_down,
    config=lambda: GPTNeoXConfig(
        **_SHARED, hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4
    ),
    phases=((1500, 2e-3, 0.0), (300, 5e-4, 0.25)),
)


# ---- sparse: five letters shifted by a key digit


def _by_key(prompt: str) -> str:
    return "".join(shifted(c, int(prompt[0])) for c in prompt[1:-1])


def _by_key_badly(prompt: str, rng: random.Random, noise: float) -> str:
    return "".join(rng.choice(LETTERS) if rng.random() < noise else c for c in _by_key(prompt))


SPARSE = GridTask(
    name="sparse",
    max_completion_length=6,
    prompt=lambda rng: rng.choice(DIGITS) + "".join(rng.choices(LETTERS, k=5)) + "=",
    solve=_by_key,
    grade=lambda completion, answer: float(completion == answer),
    demonstrate=_by_key_badly,
    config=lambda: GemmaConfig(
        **_SHARED,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
    ),
    phases=((2500, 2e-3, 0.0), (300, 5e-4, 0.3)),
)


# ---- half-nat: one letter, shifted by what a table says; the base is sure of another table

_SHIFTS = 6
_TABLE = random.Random("half-nat").choices(range(_SHIFTS), k=len(LETTERS))
_TAUGHT = [(shift + 1 + row % (_SHIFTS - 1)) % _SHIFTS for row, shift in enumerate(_TABLE)]


def _by_table(prompt: str) -> str:
    return shifted(prompt[1], _TABLE[LETTERS.index(prompt[0])])


def _by_other_table(prompt: str, rng: random.Random, noise: float) -> str:
    """The shift of a table that is wrong in every row; with probability `noise` any of the six shifts."""
    shift = rng.randrange(_SHIFTS) if rng.random() < noise else _TAUGHT[LETTERS.index(prompt[0])]
    return shifted(prompt[1], shift)


HALF_NAT = GridTask(
    name="half-nat",
    max_completion_length=1,
    prompt=lambda rng: "".join(rng.choices(LETTERS, k=4)) + "=",
    solve=_by_table,
    grade=lambda completion, answer: float(completion == answer),
    demonstrate=_by_other_table,
    config=lambda: Qwen2Config(
        **_SHARED,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=2,
    ),
    phases=((800, 1e-3, 0.0), (200, 5e-4, 0.5)),
)

TASKS = {task.name: task for task in (PARTIAL, PENALTY, SPARSE, HALF_NAT)}


# ---- bases


def tokenizer() -> PreTrainedTokenizerFast:
    """Character tokenizer of 30 tokens, padded on the left; a prompt starts with `<bos>`."""
    core = Tokenizer(models.WordLevel(_VOCABULARY, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        padding_side="left",
        model_max_length=64,
    )


def _batch(task: GridTask, prompts: list[str], noise: float, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Token ids of 64 demonstrations, and labels with -100 on the prompt; all have the same length."""
    chosen = rng.choices(prompts, k=64)
    texts = [p + task.demonstrate(p, rng, noise) for p in chosen]
    ids = torch.tensor([[2, *(_VOCABULARY[c] for c in text), 1] for text in texts])
    labels = ids.clone()
    labels[:, : 1 + len(chosen[0])] = -100
    return ids, labels


def train_base(task: GridTask) -> Any:
    """A base from scratch, the same for a given machine and thread count; under a minute on one core."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(task.config()).train()
        rng = random.Random(f"grid-base-{task.name}")
        prompts = [example.prompt for example in task.examples("train")]
        for number, (updates, rate, noise) in enumerate(task.phases, 1):
            optimizer = torch.optim.Adam(model.parameters(), lr=rate)
            recent: list[float] = []
            for update in range(updates):
                if number == len(task.phases):
                    optimizer.param_groups[0]["lr"] = rate * (1.0 - update / updates)
                ids, labels = _batch(task, prompts, noise, rng)
                loss = model(input_ids=ids, labels=labels).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                recent = [*recent[-19:], loss.item()]
                if len(recent) == 20 and sum(recent) / 20 < 0.02:
                    break
    return model.eval()


def load(name: str) -> tuple[Any, PreTrainedTokenizerFast]:
    """The base of a task of this study and its tokenizer, in float32; trained first if the cache has none.

    The cache knows a base by its configuration and phases: after another change to how it is made, empty the cache.
    """
    task = TASKS[name]
    recipe = zlib.crc32(f"{task.phases} {task.config().to_json_string()}".encode())
    place = cache_root() / "studies-grid" / f"{name}-{recipe:08x}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not (place / "config.json").is_file():
            temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=place.parent))
            try:
                train_base(task).save_pretrained(temporary)
                temporary.rename(place)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, local_files_only=True)
    return model, tokenizer()


def _register() -> None:
    for name, task in TASKS.items():
        base.register(name, lambda task=task: task)
    bases.register(MODEL, load)


_register()


def main() -> None:
    """Train the bases that the cache does not hold, and say how long each took."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    torch.set_num_threads(1)
    for name in TASKS:
        began = time.perf_counter()
        load(name)
        print(f"{name}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
