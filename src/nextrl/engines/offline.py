"""`--alpha auto` for a run on disk: score one leap at several step lengths on a task, accept one past the noise.

Two rounds, all of them paired (same prompts, same random numbers). The first scores staying put and every
candidate on the first prompts of the validation split; the best must beat staying put by `level` standard
errors. The best of several noisy scores is too good on average, so it must do so again on fresh prompts. Most
that this costs: (candidates + 3) x prompts completions, 512 at the defaults.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from torch import Tensor

from nextrl.errors import InputError
from nextrl.judge.paired_search import Scores, grid_search
from nextrl.leaps.leap import Leap
from nextrl.tasks.base import Task
from nextrl.tasks.evaluate import complete, grade

CANDIDATES = (-0.5, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class AlphaChoice:
    """What the search found.

    Attributes:
        alpha: 0.0 where no leap is worth it.
        reason: one sentence with the figures.
        means: alpha -> mean reward in the first round.
        completions: what it cost.
    """

    alpha: float
    reason: str
    means: dict[float, float]
    completions: int


def choose_alpha(
    leap: Leap,
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    prompts: int = 64,
    level: float = 1.0,
    candidates: tuple[float, ...] = CANDIDATES,
    seed: int = 0,
) -> AlphaChoice:
    """The alpha at which the leap beats its own starting point on the task, or 0.

    Candidates are scored as the run's adapter can hold them, at its own rank.

    Args:
        leap: at any alpha; the fit is used again.
        model: the base model in memory, without an adapter; it is given one.
        tokenizer: its tokenizer.
        prompts: a round, at most half of the validation split.
        level: standard errors of the paired difference that a gain must exceed, in both rounds.

    Raises:
        InputError: fewer than 2 prompts, a negative level, too few examples, an adapter of another model.
    """
    examples = task.examples("validation")
    if prompts < 2 or level < 0:
        raise InputError(f"--prompts must be at least 2 and --level at least 0, not {prompts} and {level:g}")
    if len(examples) < 2 * prompts:
        raise InputError(
            f"task '{task.name}' has {len(examples)} validation prompts; two rounds of {prompts} need "
            f"{2 * prompts}: use --prompts {len(examples) // 2}"
        )
    adapted = _with_adapter(leap, model)

    def score(alpha: float, start: int, stop: int) -> Tensor:
        set_peft_model_state_dict(adapted, dataclasses.replace(leap, alpha=alpha).leap_state())
        chosen = examples[start:stop]
        texts, length = [example.prompt for example in chosen], task.max_completion_length
        draw = 2 * seed + (start >= prompts)
        return grade(task, chosen, complete(adapted, tokenizer, texts, max_new_tokens=length, seed=draw))

    first = grid_search(score, candidates, prompts)
    best = first.best(level)
    if best == 0.0:
        top = max((a for a in first.rewards if a), key=first.gain)
        reason = f"no candidate passes; the best, {top:g}, {_figures(first, top)}"
        return AlphaChoice(0.0, reason, first.means(), first.completions())
    fresh = grid_search(lambda a, start, stop: score(a, start + prompts, stop + prompts), (best,), prompts)
    spent = first.completions() + fresh.completions()
    if not fresh.better(best, level):
        reason = f"{best:g} won the first round and fails on fresh prompts, where it {_figures(fresh, best)}"
        return AlphaChoice(0.0, reason, first.means(), spent)
    return AlphaChoice(best, f"on fresh prompts it {_figures(fresh, best)}", first.means(), spent)


def _with_adapter(leap: Leap, model: Any) -> Any:
    """The model with the adapter of the checkpoint that is leapt from, whatever layout it lies in."""
    with tempfile.TemporaryDirectory() as folder:
        dataclasses.replace(leap, alpha=0.0).save_adapter(folder)
        try:
            return PeftModel.from_pretrained(model, folder)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"the run's adapter does not fit the base model ({str(error).splitlines()[0]}); "
                "name the model it was trained on with --base"
            ) from error


def _figures(scores: Scores, alpha: float) -> str:
    return (
        f"gains {scores.gain(alpha):+.3f} ± {scores.error(alpha):.3f} over staying put "
        f"({len(scores.rewards[0.0])} prompts)"
    )
