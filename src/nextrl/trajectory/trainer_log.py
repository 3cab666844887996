"""What a trainer leaves beside its adapters and a trajectory does not hold: rewards, learning rate, Adam's beta1.

Read are `trainer_state.json` (transformers' and TRL's log) and `optimizer.pt` of a trajectory's last checkpoint, or
what verl leaves instead (`verl_log`); nothing later than that checkpoint counts. Files that are absent, damaged or of
another kind are no error: the figure is unknown then, and the caller says what it assumed. `optimizer.pt` is a pickle
and is read as data only (`checkpoints.tensorfile.read_pickle`).
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from nextrl.checkpoints import AdapterCheckpoint
from nextrl.checkpoints.layouts.verl import step_folder
from nextrl.checkpoints.tensorfile import UNREADABLE, read_pickle
from nextrl.checkpoints.trainer_folder import OPTIMIZER, STATE, named_by_count, trainer_folders
from nextrl.errors import InputError
from nextrl.files import MAX_UPDATES, NoSuchFile, in_range, is_number, is_step, read_json
from nextrl.trajectory import verl_log
from nextrl.trajectory.full_weights import FullCheckpoint
from nextrl.trajectory.persistence import DEFAULT_BETA1
from nextrl.trajectory.trajectory import FULL, MEMORY, Trajectory

# verl's are the score that the task gave, and the same less a penalty for the divergence from the reference, if any.
REWARD_KEYS = ("reward", "rewards/mean", "critic/score/mean", "critic/rewards/mean")
_OF_ONE_FUNCTION = re.compile("rewards/.+/mean")
RATE_KEYS = ("learning_rate", "actor/lr")

UPDATES_UNKNOWN = (
    "nothing here says how many optimizer updates one step of this run holds, and so how straight Adam's momentum "
    "alone would make it: give --updates-per-step N (1 where every step is an optimizer's; in verl train_batch_size / "
    "ppo_mini_batch_size x ppo_epochs)"
)
"""What to do where `updates_per_step` is not known, as a clause."""


def folder(traj: Trajectory) -> Path | None:
    """The folder of the trajectory's last checkpoint, or None for factors in memory (`checkpoints.trainer_folder`)."""
    return None if traj.layout == FULL else _places(traj).get(traj.steps[-1])


def rewards(traj: Trajectory) -> dict[int, float]:
    """Training reward by optimizer step, up to the trajectory's last step; empty where none was logged."""
    return _logged(traj, REWARD_KEYS)


def reward_functions(traj: Trajectory) -> int:
    """How many reward functions TRL added up to the reward, by the means that it logs of each; 0 where it logs none."""
    return len(
        {
            key
            for entry in _history(traj)
            if isinstance(entry, dict)
            for key, value in entry.items()
            if _OF_ONE_FUNCTION.fullmatch(str(key)) and is_number(value)
        }
    )


def peak_learning_rate(traj: Trajectory) -> float | None:
    """The highest learning rate up to the trajectory's last step; None where none is known.

    The highest and not the last one: where a schedule decays, the last says nothing about the rate that was asked for.
    A trainer that logs every tenth step has logged no rate from before the tenth, so the one that its schedule began
    from, which the optimizer remembers, counts as well.
    """
    known = (*learning_rates(traj).values(), (_group(_optimizer(traj)) or {}).get("initial_lr"))
    return max((float(rate) for rate in known if is_number(rate) and rate > 0.0), default=None)


def learning_rates(traj: Trajectory) -> dict[int, float]:
    """Learning rate by optimizer step, up to the trajectory's last step; empty where none was logged."""
    return _logged(traj, RATE_KEYS)


def _logged(traj: Trajectory, keys: Sequence[str]) -> dict[int, float]:
    """The first of these keys in each training entry of the trainer's log, by step."""
    found: dict[int, float] = {}
    for entry in _history(traj):
        if not isinstance(entry, dict) or not _of_training(entry):
            continue
        step, value = entry.get("step"), next((entry[k] for k in keys if is_number(entry.get(k))), None)
        if is_step(step) and value is not None and step <= traj.steps[-1]:
            found[int(step)] = float(value)
    return dict(sorted(found.items()))


def _history(traj: Trajectory) -> Iterable[Any]:
    """The entries of the trainer's log, whatever they are."""
    if checkpoints := _verl_checkpoints(traj):
        return verl_log.entries(checkpoints[traj.steps[-1]].parent)
    if (place := folder(traj)) is None:
        return []
    try:
        state = read_json(place / STATE)
    except NoSuchFile:
        return []
    except InputError as error:
        verl_log.say_not_used(str(error))
        return []
    if not isinstance(state, dict) or not isinstance(history := state.get("log_history"), list):
        verl_log.say_not_used(f"{place / STATE}: holds no log_history")
        return []
    counted, last = state.get("global_step"), traj.steps[-1]
    if is_step(counted) and counted != last:
        verl_log.say_not_used(f"{place / STATE}: counts {counted:g} optimizer steps where the run has {last}")
        return []
    return history


def _verl_checkpoints(traj: Trajectory) -> dict[int, Path]:
    """Step -> `global_step_N` of all checkpoints of a verl run; empty of another, or of one that was moved about."""
    found = {
        checkpoint.step: place
        for checkpoint in traj.checkpoints
        if isinstance(checkpoint, AdapterCheckpoint)
        and (place := step_folder(checkpoint.file.path.parent)) is not None
    }
    return found if traj.layout == "verl" and traj.steps[-1] in found else {}


def updates_per_step(traj: Trajectory, given: int | None = None) -> int | None:
    """Optimizer updates in each step of the run: the number given, or what its files say; None where nothing says it.

    One in transformers and TRL, whatever their `num_iterations` and gradient accumulation: the `global_step` of their
    log counts updates (trl 1.16.0, transformers 5.24.0). Factors in memory were given by optimizer steps. The name of a
    folder says nothing: verl's and OpenRLHF's steps are batches of rollouts, as are those of other tools, or epochs.

    Raises:
        InputError: the number given is none, or less than 1.
    """
    if given is not None:
        return in_range(given, "updates_per_step", 1, MAX_UPDATES)
    if traj.layout == MEMORY:
        return 1
    if checkpoints := _verl_checkpoints(traj):
        return verl_log.updates_per_step(checkpoints[traj.steps[-1]].parent, checkpoints)
    places = _places(traj)
    counts = {step: _global_step(places[step]) for step in sorted(places)[-verl_log.LOOKED_AT :]}
    known = {step: count for step, count in counts.items() if count is not None}
    return 1 if named_by_count(known) else _usual_gap(known if len(known) > 1 else {0: 0, **known})


def _usual_gap(counts: Mapping[int, int]) -> int | None:
    """Updates in a step between most of the checkpoints that are next to each other; None where most disagree.

    One gap is another where a run was joined from several that count anew, or its last epoch was cut short.

    Args:
        counts: step of the run -> updates that the trainer had counted there.
    """
    gaps = [(b - a) / (late - early) for (early, a), (late, b) in itertools.pairwise(sorted(counts.items()))]
    gap, times = Counter(gaps).most_common(1)[0] if gaps else (0.0, 0)
    return int(gap) if 2 * times > len(gaps) and 1 <= gap <= MAX_UPDATES and gap == int(gap) else None


def _places(traj: Trajectory) -> dict[int, Path]:
    """Step -> the folder with what the trainer left, of all checkpoints on disk: adapters, or all weights."""
    full = {c.step: c.model.folder for c in traj.checkpoints if isinstance(c, FullCheckpoint)}
    return full or trainer_folders([c for c in traj.checkpoints if isinstance(c, AdapterCheckpoint)])


def _global_step(place: Path) -> int | None:
    """Optimizer updates up to a checkpoint, as transformers' log beside it counts them."""
    try:
        state = read_json(place / STATE)
    except InputError:
        return None
    count = state.get("global_step") if isinstance(state, dict) else None
    return int(count) if is_step(count) else None


def _of_training(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is of training steps, and not of an evaluation at that step or the summary at the end."""
    # Both come later in the log than the step's own entry, and would take its place whatever they call their figures.
    other = "train_runtime" in entry or any(str(key).startswith("eval_") for key in entry)
    return "loss" in entry or not other


def rewards_by_window(traj: Trajectory, by_step: Mapping[int, float]) -> dict[int, list[float]]:
    """The rewards logged in each window, by its last step; windows without any are left out.

    A window lies between a checkpoint and the one before it. Where those are further apart than the run's spacing, as
    where old ones were deleted, the stretch is cut into windows of that spacing, counted back from its end: the log
    has every step, and the mean of a long stretch would be compared with those of short ones. A rest of less than half
    a spacing belongs to the window after it.

    Where the run begins with a leap, what was earned before it is left out too.
    """
    found: dict[int, list[float]] = {}
    ends = [traj.start or -1, *traj.steps]
    for step, reward in sorted(by_step.items()):
        place = bisect.bisect_left(ends, step)
        if 0 < place < len(ends):
            found.setdefault(_window_end(step, ends[place - 1], ends[place], traj.spacing), []).append(reward)
    return found


def _window_end(step: int, before: int, end: int, spacing: int) -> int:
    """The last step of the window that a step after `before`, up to `end`, lies in."""
    windows = max(1, round((end - max(before, 0)) / spacing))
    return end - spacing * min((end - step) // spacing, windows - 1)


def reward_by_checkpoint(traj: Trajectory, by_step: Mapping[int, float]) -> dict[int, float]:
    """The mean of each of `rewards_by_window` that ends at a checkpoint."""
    windows = rewards_by_window(traj, by_step)
    return {step: sum(windows[step]) / len(windows[step]) for step in traj.steps if step in windows}


BETA1_UNKNOWN = (
    "the optimizer's file does not say how much of one update the next carries on, and so how straight momentum alone "
    "would make the run"
)
"""What is missing where `knows_beta1` is false, as a clause."""


def adam_beta1(traj: Trajectory) -> float | None:
    """beta1 from the optimizer's param groups, or None where its file is absent or of another kind.

    SGD's and RMSprop's `momentum` is one: their updates are sums of earlier ones with weights momentum^j as well, but
    for Nesterov's. Adafactor writes `beta1`, None where it has none. Whoever has none of these has no momentum. Of
    `betas` the first is one where they are Adam's (`_are_adams`).
    """
    return _beta1(_optimizer(traj))


def _beta1(saved: object) -> float | None:
    """`adam_beta1` of what an optimizer's file holds."""
    group = _group(saved)
    if group is None:
        return None
    betas = group.get("betas")
    beta1: object = betas[0] if isinstance(betas, tuple | list) and _are_adams(betas, _kept(saved)) else None
    if "betas" not in group:
        beta1 = group.get("beta1", group.get("momentum"))
        beta1 = None if group.get("nesterov") else 0.0 if beta1 is None else beta1
    return float(beta1) if is_number(beta1) and 0.0 <= beta1 < 1.0 else None


def knows_beta1(traj: Trajectory) -> bool:
    """False where an optimizer's file is there that does not say it: only without a file it is taken for Adam's."""
    saved = _optimizer(traj)
    return _group(saved) is None or _beta1(saved) is not None


def _are_adams(betas: Sequence[object], kept: Set[str]) -> bool:
    """Whether an optimizer's `betas` are decays of a first and of a second moment, as Adam has them.

    Lion keeps one moment, whose memory is `betas[1]`; AdEMAMix has a second momentum under a third number; what
    schedule-free optimizers leave (beside their `z`) is a running mean.

    Args:
        kept: names of what the optimizer keeps of its parameters; of none where the file does not tell.
    """
    alone = "state1" in kept and "state2" not in kept  # bitsandbytes' names, with tables of codes beside them
    one_moment = alone or len(kept - {"step"}) == 1
    return len(betas) == 2 and not one_moment and "z" not in kept


def _kept(saved: object) -> set[str]:
    """Names of what the optimizer keeps of its parameters; none where its file is absent or does not tell."""
    state = saved.get("state") if isinstance(saved, dict) else None
    entries = state.values() if isinstance(state, dict) else ()
    return {str(name) for entry in entries if isinstance(entry, dict) for name in entry}


def _group(saved: object) -> dict[str, object] | None:
    """The optimizer's first param group; None where its file is absent or of another kind."""
    groups = saved.get("param_groups") if isinstance(saved, dict) else None
    first = groups[0] if isinstance(groups, list) and groups else None
    return first if isinstance(first, dict) else None


def _optimizer(traj: Trajectory) -> object:
    """What the optimizer's file of the last checkpoint holds; None where it is absent or cannot be read."""
    if checkpoints := _verl_checkpoints(traj):
        return verl_log.optimizer(checkpoints[traj.steps[-1]])
    place = folder(traj)
    try:
        return None if place is None else read_pickle(place / OPTIMIZER, mmap=True)
    except UNREADABLE:
        return None


def beta1_or_default(traj: Trajectory) -> float:
    """The run's own beta1 where its trainer left it, else `DEFAULT_BETA1`."""
    own = adam_beta1(traj)
    return DEFAULT_BETA1 if own is None else own
