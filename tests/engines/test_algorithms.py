"""Every registered algorithm through the same short run; an algorithm is tested by being registered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from nextrl.engines import algorithms
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.live_weights import along
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.trl.callback import LeapCallback
from nextrl.engines.trl.trainer import as_dataset, build_trainer, with_adapter
from nextrl.errors import InputError
from nextrl.tasks import base
from nextrl.tasks.bases import tiny
from nextrl.trajectory.trajectory import Trajectory
from trl_runs import Scripted, scripted_policy

TASK = base.get("chain")
VALIDATION = as_dataset(TASK.examples("validation")[:32])
STEPS = 4
OWN = {  # what makes it this algorithm and no other, as TRL's config has it after its own defaults
    "grpo": {"loss_type": "grpo", "scale_rewards": "group", "epsilon_high": None, "steps_per_generation": 1},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none", "steps_per_generation": 1},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "rloo": {"normalize_advantages": False},
    "reinforce_plus_plus": {"normalize_advantages": True},
}


class Leaps(LeapCallback):
    """Keeps the adapter just before and just after every window's end."""

    def __init__(self) -> None:
        controller = Scripted([(2.0, 3.0), (0.0, 1.0)], (0.0, 2.0))
        super().__init__(policy=scripted_policy(controller, prompts=8), validation=VALIDATION)
        self.around: list[tuple[Any, Any, Any]] = []

    def end_step(self, state: Any) -> None:
        start, before = self._session.memory.start.state, self._session.run.adapter.read()
        super().end_step(state)
        if state.global_step % 2 == 0:
            self.around.append((start, before, self._session.run.adapter.read()))


@pytest.fixture(scope="module", params=algorithms.names())
def run(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(algorithm, trainer after training, callback, folder, adapter before, generations of training batches)."""
    algorithm = algorithms.get(request.param)
    folder = tmp_path_factory.mktemp(algorithm.name)
    model = with_adapter(tiny.load("chain")[0], LoraSettings(r=4, alpha=8), 0)
    before = LiveAdapter(model).read()
    settings = TrainSettings(
        algorithm=algorithm.name,
        steps=STEPS,
        save_every=2,
        learning_rate=1e-3,
        prompts_per_step=4,
        completions_per_prompt=4,
    )
    leaps = Leaps()
    trainer = build_trainer(model, tiny.tokenizer(), TASK, settings, folder, callbacks=[leaps])
    sampled: list[int] = []
    generate = trainer._generate

    def counted(prompts: Any) -> Any:
        if trainer.model.training:
            sampled.append(len(prompts))
        return generate(prompts)

    trainer._generate = counted
    trainer.train()
    return algorithm, trainer, leaps, folder, before, sampled


def test_the_trainer_is_trl_s_own_with_the_algorithm_s_options(run: Any) -> None:
    algorithm, trainer, *_ = run
    assert type(trainer) is algorithm.trainer
    wanted = {**algorithm.options, **OWN.get(algorithm.name, {})}
    assert {name: getattr(trainer.args, name) for name in wanted} == wanted
    assert trainer.args.beta == 0.0


def test_completions_a_step_are_the_same_for_all(run: Any) -> None:
    algorithm, _, _, _, _, sampled = run
    each = algorithm.steps_per_generation
    assert sampled == [16 * each] * (STEPS // each)
    # A window of ten steps, the default, ends where a rollout batch does: a leap throws none away.
    assert 10 % each == 0


def test_the_adapter_moves_and_nothing_else(run: Any) -> None:
    _, trainer, _, _, before, _ = run
    after = LiveAdapter(trainer.model).read()
    assert all(torch.isfinite(t).all() for t in after.values())
    assert any(not torch.equal(before[n], after[n]) for n in after)
    untouched = dict(tiny.load("chain")[0].named_parameters())
    frozen = {n: p for n, p in trainer.model.named_parameters() if "lora_" not in n}
    prefix = "base_model.model."
    assert len(frozen) == len(untouched)
    assert all(
        torch.equal(p, untouched[n.removeprefix(prefix).replace(".base_layer", "")])
        for n, p in frozen.items()
    )


def test_the_leap_is_two_windows_further_inside_the_factors(run: Any) -> None:
    _, trainer, leaps, *_ = run
    assert [d.alpha for d in leaps.decisions] == [2.0, 0.0]
    assert leaps.costs.search_completions == 2 * 2 * 8
    (start, before, after), (_, stay, stayed) = leaps.around
    expected = along(start, before, 2.0)
    assert all(torch.equal(after[n], expected[n]) for n in after)
    assert any(not torch.equal(after[n], before[n]) for n in after)
    assert all(torch.equal(stay[n], stayed[n]) for n in stay)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(3e-3)


def test_the_trajectory_is_readable_and_holds_the_run(run: Any) -> None:
    _, trainer, _, folder, *_ = run
    traj = Trajectory.load(folder)
    assert list(traj.steps) == [2, 4]
    live = LiveAdapter(trainer.model)
    assert len(traj.modules) == len(live.pairs)


def rewards_and_advantages(trainer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the latest rollout batches were graded with, (batches, prompts, completions a prompt) each."""
    size = 16 * trainer.args.steps_per_generation
    rewards = torch.tensor(list(next(iter(trainer._logs["rewards"].values()))))
    advantages = torch.tensor(list(trainer._logs["advantages"]))
    assert len(rewards) == len(advantages)
    assert len(rewards) % size == 0
    return rewards.view(-1, size // 4, 4), advantages.view(-1, size // 4, 4)


def by_formula(name: str, rewards: torch.Tensor) -> torch.Tensor:
    """Advantages as the papers write them, from rewards (batches, prompts, completions)."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    if name == "dr_grpo":
        return centred
    if name == "rloo":
        others = (rewards.sum(-1, keepdim=True) - rewards) / (rewards.shape[-1] - 1)
        return rewards - others
    if name == "reinforce_plus_plus":
        flat = centred.flatten(1)
        return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(rewards)
    return centred / (rewards.std(-1, keepdim=True) + 1e-4)


def test_advantages_are_the_paper_s(run: Any) -> None:
    algorithm, trainer, *_ = run
    rewards, advantages = rewards_and_advantages(trainer)
    assert rewards.std() > 0
    expected = by_formula(algorithm.name, rewards)
    assert torch.allclose(advantages, expected, atol=2e-3), (advantages - expected).abs().max()


def test_a_reused_batch_is_off_policy_and_a_fresh_one_is_not(run: Any) -> None:
    algorithm, trainer, *_ = run
    history = trainer.state.log_history
    clipped = [h[k] for h in history for k in ("clip_ratio/region_mean", "cispo_clip_ratio") if k in h]
    assert len(clipped) == STEPS
    if algorithm.name == "gspo":  # a clip this narrow must bind on every second step, and there only
        assert (clipped[0], clipped[2]) == (0.0, 0.0)
        assert min(clipped[1], clipped[3]) > 0.0
    if algorithm.steps_per_generation == 1:
        assert clipped == [0.0] * STEPS


def test_an_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(
        InputError, match="unknown algorithm 'ppo'; known: grpo, dr_grpo, dapo, gspo, cispo, rloo"
    ):
        algorithms.get("ppo")
    with pytest.raises(ValidationError, match="known: grpo"):
        TrainSettings(algorithm="ppo")


def test_the_default_is_grpo_with_nothing_beside_the_loss() -> None:
    assert TrainSettings().algorithm == "grpo"
    assert dict(algorithms.get("grpo").options) == {"beta": 0.0, "loss_type": "grpo"}
