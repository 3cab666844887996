"""Other weights judged on a trainer's own rollouts, against the definitions over the whole vocabulary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOTrainer

from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.live_weights import along
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl.callback import LeapCallback
from nextrl.engines.trl.fresh_rollouts import AT_LEAST, TOKENS, FreshRollouts, _prompts, _Rows, enough
from nextrl.judge.fresh_batch import BatchGain, batch_gain, batch_sums
from trainer_options import OPTIONS, build
from trl_runs import same, trainable, trainer


def log_probabilities(model: Any, batches: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log-probabilities of the whole vocabulary, the completions' own, mask)."""
    parts = {k: torch.cat([b[k] for b in batches]) for k in batches[0] if k.split("_")[-1] in ("ids", "mask")}
    ids = torch.cat([parts["prompt_ids"], parts["completion_ids"]], 1)
    attention = torch.cat([parts["prompt_mask"], parts["completion_mask"]], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=attention).logits[
            :, parts["prompt_ids"].shape[1] - 1 : -1
        ]
    every = torch.log_softmax(logits, -1)
    own = every.gather(-1, parts["completion_ids"].unsqueeze(-1)).squeeze(-1)
    return every, own, parts["completion_mask"] * parts.get("tool_mask", 1)


class Probe(TrainerCallback):
    """Listens to the last step, and asks about weights on the line from the run's start to where that step began."""

    def __init__(self, at: int, alphas: tuple[float, ...] = ()) -> None:
        self.at, self.alphas, self.run = at, alphas, None
        self.found: dict[float, BatchGain] = {}
        self.expected: dict[float, BatchGain] = {}
        self.exact: dict[float, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.adapter = LiveAdapter(kwargs["model"])
        self.fresh = FreshRollouts(self.run, self.adapter, Ranks(self.run.accelerator))
        self.start = self.adapter.read()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.at:
            self.anchor = self.adapter.read()
            self.fresh.listen()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.fresh.stop()
        if state.global_step != self.at:
            return
        model, after = kwargs["model"], trainable(kwargs["model"])
        self.moved = self.fresh.moved(self.anchor)
        for alpha in self.alphas:
            self.found[alpha] = self.fresh.gain(self.anchor, along(self.start, self.anchor, alpha))
        assert same(trainable(model), after)
        batches = self.run._buffered_inputs
        advantages = torch.cat([b["advantages"] for b in batches])
        prompts = torch.cat([b["prompt_ids"] for b in batches])
        groups = torch.unique(prompts, dim=0, return_inverse=True)[1]
        self.prompts = len(groups.unique())
        with self.adapter.holding(self.anchor):
            p, own, mask = log_probabilities(model, batches)
        for alpha in self.alphas:
            with self.adapter.holding(along(self.start, self.anchor, alpha)):
                q, theirs, _ = log_probabilities(model, batches)
            self.expected[alpha] = batch_gain(batch_sums(theirs - own, advantages, groups, mask))
            self.exact[alpha] = float((((p.exp() * (p - q)).sum(-1)) * mask).sum() / mask.sum())
        now = log_probabilities(model, batches)[1]
        self.step = float(((now - own).square() / 2 * mask).sum() / mask.sum())


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
@pytest.mark.parametrize(
    "batch",
    [
        {"per_device_train_batch_size": 32},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
        {
            "per_device_train_batch_size": 8,
            "steps_per_generation": 4,
        },  # the anchor's pass is taken anew, or TRL's own
        {"per_device_train_batch_size": 32, "num_iterations": 2},
    ],
)
def test_a_gain_is_that_of_the_batch_over_its_own_weights(tmp_path: Path, kind: type, batch: Any) -> None:
    probe = Probe(5, (-1.0, 0.0, 2.0))
    probe.run = trainer(tmp_path, [probe], kind=kind, max_steps=5, learning_rate=5e-4, **batch)
    probe.run.train()
    for alpha in (-1.0, 2.0):
        found, expected = probe.found[alpha], probe.expected[alpha]
        assert found.gain.value == pytest.approx(expected.gain.value, rel=1e-3, abs=1e-6)
        assert found.gain.error == pytest.approx(expected.gain.error, rel=1e-3, abs=1e-6)
        assert found.nats_k2 == pytest.approx(expected.nats_k2, rel=1e-3)
        assert (found.completions, found.groups) == (32, probe.prompts)
    assert probe.found[0.0].nats_k2 == pytest.approx(0.0, abs=1e-10)
    assert "_get_per_token_logps_and_entropies" not in vars(probe.run)


def test_the_divergence_is_that_of_the_policies_on_their_own_rollouts(tmp_path: Path) -> None:
    probe = Probe(2, (-1.0, 2.0, 8.0))
    probe.run = trainer(tmp_path, [probe], max_steps=2, learning_rate=5e-4, per_device_train_batch_size=256)
    probe.run.train()
    for alpha in probe.alphas:
        assert probe.found[alpha].nats_k2 == pytest.approx(probe.exact[alpha], rel=0.35)
    assert probe.found[-1.0].nats_k2 < probe.found[2.0].nats_k2 < probe.found[8.0].nats_k2


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
def test_a_step_s_divergence_is_between_its_two_ends(tmp_path: Path, kind: type) -> None:
    probe = Probe(3)
    probe.run = trainer(tmp_path, [probe], kind=kind, max_steps=3, learning_rate=5e-4)
    probe.run.train()
    assert probe.moved > 0.0
    assert probe.moved == pytest.approx(probe.step, rel=1e-3)


def test_what_tools_answered_is_no_movement_of_the_policy(tmp_path: Path) -> None:
    probe = Probe(1)
    probe.run = build(OPTIONS["tools"], tmp_path, [probe], max_steps=1, learning_rate=1e-2)
    probe.run.train()
    batch = probe.run._buffered_inputs[0]
    assert bool((batch["tool_mask"] == 0).any())
    assert probe.moved > 0.0
    assert probe.moved == pytest.approx(probe.step, rel=1e-3)
    # Other rows than the trainer holds: the anchor is read anew.
    probe.run._buffered_inputs = [
        {**b, "prompt_ids": b["prompt_ids"] + 1} for b in probe.run._buffered_inputs
    ]
    assert probe.fresh._heard() is None


def test_rows_of_one_prompt_have_one_number_whatever_their_order(tmp_path: Path) -> None:
    probe = Probe(1, (0.0,))
    probe.run = trainer(tmp_path, [probe], max_steps=1)
    probe.run.train()
    numbers = _prompts(probe.fresh._kept)
    assert len(numbers.unique()) == probe.prompts == 8
    assert all(int((numbers == n).sum()) == 4 for n in numbers.unique())


def test_without_rollouts_there_is_nothing_to_measure_on(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    adapter = LiveAdapter(run.model)
    fresh, state = FreshRollouts(run, adapter, Ranks(run.accelerator)), adapter.read()
    assert math.isnan(fresh.moved(state))
    assert fresh.gain(state, state) is None


def test_images_leave_nothing_to_measure_on(tmp_path: Path) -> None:
    probe = Probe(1)
    probe.run = trainer(tmp_path, [probe], max_steps=1)
    probe.run.train()
    for part in probe.run._buffered_inputs:
        part["pixel_values"] = torch.zeros(1)
    assert probe.fresh.gain(probe.anchor, probe.anchor) is None


def test_under_dropout_the_anchor_is_read_anew(tmp_path: Path) -> None:
    probe = Probe(2)
    probe.run = trainer(tmp_path, [probe], max_steps=2, learning_rate=5e-4)
    next(iter(probe.run.model.modules())).extra = torch.nn.Dropout(0.1)
    probe.run.train()
    assert probe.fresh._passes == []
    assert probe.moved == pytest.approx(probe.step, rel=1e-3)
    assert probe.fresh.repeatable is False


def drops_attention(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1


def jitters(model: Any) -> None:
    """Noise in training, as a router's, in no dropout module."""
    layer = next(m for m in model.modules() if isinstance(m, torch.nn.Embedding))
    layer.register_forward_hook(
        lambda m, _, out: out * (1 + 1e-3 * torch.randn_like(out)) if m.training else out
    )


@pytest.mark.parametrize("disturb", [drops_attention, jitters])
@pytest.mark.parametrize("more", [{}, {"per_device_train_batch_size": 16, "steps_per_generation": 4}])
def test_passes_that_are_random_without_a_dropout_module_are_read_anew(
    tmp_path: Path, disturb: Any, more: dict[str, int]
) -> None:
    probe = Probe(2)
    probe.run = trainer(tmp_path, [probe], max_steps=2, learning_rate=1e-6, **more)
    disturb(probe.run.model)
    probe.run.train()
    assert probe.fresh.repeatable is False
    assert 0.0 < probe.moved < 1e-9
    back = probe.fresh.gain(probe.anchor, probe.anchor)
    assert back is not None
    assert back.nats_k2 == 0.0


def test_noise_on_embeddings_that_the_trainer_adds_is_no_step_too_far(tmp_path: Path) -> None:
    callback = LeapCallback(4)
    trainer(tmp_path, [callback], learning_rate=2e-4, max_steps=8, neftune_noise_alpha=5.0).train()
    assert not [d for d in callback.decisions if d.back]


def test_a_model_without_randomness_is_read_once_more_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    really = FreshRollouts._read
    monkeypatch.setattr(
        FreshRollouts, "_read", lambda self, rows: read.append(len(rows.ids)) or really(self, rows)
    )
    trainer(tmp_path, [LeapCallback(4)], learning_rate=1e-6, max_steps=3).train()
    assert read[0] == AT_LEAST
    assert read.count(AT_LEAST) == 1
    assert len(read) > 2


def test_a_step_after_which_there_are_no_probabilities_went_too_far(tmp_path: Path) -> None:
    probe = Probe(1)
    probe.run = trainer(tmp_path, [probe], max_steps=1)
    probe.run.train()
    ruined = {name: torch.full_like(t, math.nan) for name, t in probe.adapter.read().items()}
    probe.adapter.write(ruined)
    assert probe.fresh.moved(probe.anchor) == math.inf


@pytest.mark.parametrize(
    ("length", "rows", "most", "wanted"),
    [
        (6, 512, 512, TOKENS // 6),
        (6, 100, 512, 101),
        (200, 64, 512, AT_LEAST),
        (50, 64, 512, 16),
        (6, 512, 48, 48),
    ],
)
def test_long_completions_need_fewer(length: int, rows: int, most: int, wanted: int) -> None:
    mask = torch.ones(rows, length, dtype=torch.long)
    found = enough(mask.sum(1), most)
    assert min(found, rows) == min(wanted, rows)


def test_no_more_rows_are_read_than_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, read = trainer(tmp_path, max_steps=2), []
    probe = Probe(2)
    probe.run = run
    run.add_callback(probe)
    really = FreshRollouts._read

    def reading(self: FreshRollouts, rows: _Rows) -> torch.Tensor:
        read.append(len(rows.ids))
        return really(self, rows)

    monkeypatch.setattr(FreshRollouts, "_read", reading)
    monkeypatch.setattr("nextrl.engines.trl.fresh_rollouts.TOKENS", 1)
    run.train()
    assert read == [AT_LEAST, AT_LEAST]  # the first to see whether passes are random


def test_processes_read_as_many_rows_as_the_one_that_needs_most(tmp_path: Path) -> None:
    """Rows go through the model in chunks, and under FSDP each chunk is one all-gather: counts must not differ."""
    run = trainer(tmp_path)

    class Beside(Ranks):
        def gather(self, part: Any) -> list[Any]:
            return [part, 48]

    fresh = FreshRollouts(run, LiveAdapter(run.model), Beside(run.accelerator))
    long = torch.ones(64, 200, dtype=torch.long)
    assert fresh._enough(_Rows(long, long, long, long.float()), 512) == 48


class Judged(TrainerCallback):
    """What the second step's batch says of going back, and how many of its prompts had rewards that differ."""

    run: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.adapter = LiveAdapter(kwargs["model"])
        self.fresh, self.start = (
            FreshRollouts(self.run, self.adapter, Ranks(self.run.accelerator)),
            self.adapter.read(),
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.anchor = self.adapter.read()
        self.fresh.listen()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.fresh.stop()
        self.found = self.fresh.gain(self.anchor, self.start)
        self.advantages = torch.cat([b["advantages"] for b in self.run._buffered_inputs])


def by_prompt(prompts: list[str], first: tuple[float, ...], other: tuple[float, ...]) -> list[float]:
    """Rewards of eight completions for each prompt: `first` for those of the first, `other` for all others."""
    return [(first if prompt == prompts[0] else other)[i % 8] for i, prompt in enumerate(prompts)]


EVEN = (0.7,) * 8
HALF = (0.7, 0.0) * 4


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
@pytest.mark.parametrize(
    ("first", "options"),
    [(EVEN, {}), (HALF, {}), (HALF, {"steps_per_generation": 4, "per_device_train_batch_size": 16})],
)
def test_prompts_whose_completions_earned_the_same_are_not_informative(
    tmp_path: Path, kind: type, first: tuple[float, ...], options: dict[str, Any]
) -> None:
    def reward(prompts: list[str], **_: Any) -> list[float]:
        return by_prompt(prompts, first, EVEN)

    probe = Judged()
    probe.run = trainer(
        tmp_path, [probe], kind=kind, rewards=reward, max_steps=1, num_generations=8,
        **{"per_device_train_batch_size": 64, **options},
    )  # fmt: skip
    probe.run.train()
    assert int((probe.advantages != 0).sum()) > 8  # a mean of equal rewards is not the reward in float32
    assert probe.found.informative == (8 if first is HALF else 0)
    assert probe.found.gain.error == math.inf or first is HALF


@pytest.mark.parametrize("how", ["sum_then_normalize", "normalize_then_sum"])
def test_rewards_that_add_up_to_the_same_are_the_same_but_where_each_is_normalised(
    tmp_path: Path, how: str
) -> None:
    def form(prompts: list[str], **_: Any) -> list[float]:
        return by_prompt(prompts, (0.1, 0.4) * 4, EVEN)

    def answer(prompts: list[str], **_: Any) -> list[float]:
        return by_prompt(prompts, (0.6, 0.3) * 4, EVEN)

    probe = Judged()
    probe.run = trainer(
        tmp_path, [probe], rewards=[form, answer], max_steps=1, num_generations=8, per_device_train_batch_size=64,
        multi_objective_aggregation=how, reward_weights=[1.0, 0.5 if how == "normalize_then_sum" else 1.0],
    )  # fmt: skip
    probe.run.train()
    assert int((probe.advantages != 0).sum()) > 0
    assert probe.found.informative == (8 if how == "normalize_then_sum" else 0)


def test_a_penalty_for_leaving_the_reference_tells_completions_of_one_reward_apart(tmp_path: Path) -> None:
    probe = Judged()
    probe.run = trainer(
        tmp_path, [probe], kind=RLOOTrainer, rewards=lambda prompts, **_: by_prompt(prompts, EVEN, EVEN),
        max_steps=2, num_generations=8, per_device_train_batch_size=64, beta=0.5, learning_rate=1e-2,
    )  # fmt: skip
    probe.run.train()
    assert probe.found.informative_groups == 8
