"""What verl reads of a task: two files of prompts, a reward function, and a chat template that changes nothing.

verl 0.9.1 reads `.jsonl` (utils/dataset/rl_dataset.py), always builds prompts through a chat template
(experimental/agent_loop), and calls `compute_score(data_source, solution_str, ground_truth, extra_info)`
(experimental/reward_loop/reward_manager/naive.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nextrl.checkpoints.atomic import write_bytes
from nextrl.errors import InputError, needs
from nextrl.tasks.base import Split, Task

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""A chat template whose output is the message's text."""

VALIDATION_ROWS = 256  # verl wants a validation file; nextrl never has it validated

_REWARD = '''"""verl's reward function for the task {name!r}; written by nextrl."""

import importlib

for module in {modules!r}:
    importlib.import_module(module)

from nextrl.tasks import base

TASK = base.get({name!r})


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """The task's own reward of one completion."""
    return float(TASK.reward(solution_str, ground_truth))
'''


def write_data(task: Task, folder: Path) -> None:
    """Write train.jsonl, validation.jsonl and reward.py."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_rows(task, "train", folder / "train.jsonl", None)
    _write_rows(task, "validation", folder / "validation.jsonl", VALIDATION_ROWS)
    # A task of the user's own is registered by importing the module it was defined in.
    modules = sorted({"nextrl.tasks", type(task).__module__} - {"__main__"})
    write_bytes(folder / "reward.py", _REWARD.format(name=task.name, modules=modules).encode())


def _write_rows(task: Task, split: Split, path: Path, limit: int | None) -> None:
    rows = [
        {
            "data_source": task.name,
            "prompt": [{"role": "user", "content": example.prompt}],
            "reward_model": {"style": "rule", "ground_truth": example.answer},
            "extra_info": {"index": index, "split": split},
        }
        for index, example in enumerate(task.examples(split)[:limit])
    ]
    if not rows:
        raise InputError(f"task '{task.name}' has no {split} examples for verl to read")
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def plain_template(tokenizer: Any) -> str:
    """A chat template whose output is the message's text, tokenized as nextrl's own evaluation tokenizes it.

    A template is tokenized without special tokens, so a beginning-of-sequence token that the tokenizer puts before
    plain text has to be in the template.
    """
    ids = tokenizer("1").input_ids
    begins = bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    start = "{{ bos_token }}" if begins else ""
    return start + TEMPLATE


def tokenizer(model: str) -> Any:
    """The tokenizer in a model's folder.

    Raises:
        InputError: no such folder, or no tokenizer in it.
    """
    with needs("verl", "engine verl"):
        from transformers import AutoTokenizer

    if not (Path(model) / "config.json").is_file():
        raise InputError(
            f"engine verl: model '{model}' is not a folder with a config.json; give a downloaded model"
        )
    try:
        return AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or ["unknown"])[0]
        raise InputError(f"engine verl: model '{model}' has no tokenizer that loads ({first})") from None
