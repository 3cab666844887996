"""Any dataset of reasoning-gym: `reasoning_gym:gcd`, or with options `reasoning_gym:chain_sum?shots=4&max_terms=2`.

Questions are generated from one seed and split by the hash of the prompt. Four options are read here: `shots` is the
number of solved questions that are put before each question (default 0), `size` the number of questions that are
generated (5,000), `seed` reasoning-gym's seed, and `tokens` the most tokens of a completion. Every other option goes to
the dataset itself. The reward is the dataset's own score.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from nextrl.errors import InputError, needs, require
from nextrl.registry import did_you_mean
from nextrl.tasks.base import Example, Split, register_source, split_of
from nextrl.tasks.jsonl import checked
from nextrl.tasks.task_name import MAX_LENGTH, TaskName, parse

PREFIX = "reasoning_gym:"
_OWN = ("shots", "size", "seed", "tokens")
# Answers tell how long completions may be. A character is seldom more than a token; the rest is for how a model
# begins (a space) and ends (a line break).
_EXTRA_TOKENS, _MOST_TOKENS = 3, 512


@dataclass(frozen=True)
class GymTask:
    """`Task` of a reasoning-gym dataset.

    `Example.answer` is the question's index in the dataset, a colon and the dataset's answer: the dataset's
    score needs the whole entry, of which the index finds the rest.
    """

    name: str
    max_completion_length: int
    dataset: Any = field(repr=False)
    splits: dict[Split, list[Example]] = field(repr=False)

    def examples(self, split: Split) -> list[Example]:
        """Examples of a split in the order of generation, each prompt once."""
        return list(self.splits[split])

    def reward(self, completion: str, answer: str) -> float:
        """The dataset's score, in [0, 1], of what the completion says before it goes on to something else."""
        index, _, text = answer.partition(": ")
        # The prompt ends in "Answer:", and a model that has answered writes on: the next line, or the next question.
        end = "\n\n" if "\n" in text else "\n"
        said = completion.strip().split(end, 1)[0].strip()
        try:
            score = float(self.dataset.score_answer(said, self.dataset[int(index)]))
        except (ValueError, OverflowError):
            return 0.0  # some datasets call int or float on whatever was said; of 5000 digits too
        return min(1.0, max(0.0, score))


def render(question: str, answer: str | None = None) -> str:
    """A question as the model sees it; with an answer, as a worked example."""
    return f"Question: {question.strip()}\nAnswer:" + ("" if answer is None else f" {answer.strip()}\n\n")


def build(name: str) -> GymTask:
    """The task of a name like `reasoning_gym:gcd?shots=4`.

    Raises:
        InputError: reasoning-gym is not installed, or it has no such dataset, or refuses an option.
    """
    require("reasoning_gym", "tasks", f"task '{name}'")
    return _build(name)


@lru_cache(maxsize=4)
def _build(name: str) -> GymTask:
    parts = parse(name)
    shots, size = parts.integer("shots", 0, 0), parts.integer("size", 5000, 20)
    seed = parts.integer("seed", 0, 0)
    dataset = _dataset(parts, shots + size, seed)
    entries = [dataset[i] for i in range(shots + size)]
    before = "".join(render(e["question"], str(e["answer"])) for e in entries[:shots])
    splits: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    seen = {e["question"] for e in entries[:shots]}
    for index, entry in enumerate(entries[shots:], shots):
        if entry["question"] in seen or entry["answer"] is None:
            continue
        seen.add(entry["question"])
        prompt = before + render(entry["question"])
        splits[split_of(prompt)].append(Example(prompt, f"{index}: {entry['answer']}"))
    longest = max(len(str(e["answer"])) for e in entries)
    tokens = parts.integer("tokens", min(longest + _EXTRA_TOKENS, _MOST_TOKENS), 1, MAX_LENGTH)
    return GymTask(name, tokens, dataset, checked(f"task '{name}'", splits))


def _dataset(parts: TaskName, size: int, seed: int) -> Any:
    with needs("tasks", f"task '{parts.full}'"):
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

    wanted = parts.source.removeprefix(PREFIX)
    if wanted not in DATASETS:
        hint = did_you_mean(wanted, DATASETS, f"it has {', '.join(sorted(DATASETS))}")
        raise InputError(f"task '{parts.full}': reasoning-gym has no dataset '{wanted}'; {hint}")
    own = {key: value for key, value in parts.options.items() if key not in _OWN}
    try:
        return reasoning_gym.create_dataset(wanted, size=size, seed=seed, **own)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"task '{parts.full}': reasoning-gym refuses the options: {error}") from None


register_source(f"{PREFIX}NAME", lambda name: name.startswith(PREFIX), build, program=True)
