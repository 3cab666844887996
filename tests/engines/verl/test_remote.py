"""verl's driver against a stand-in for its workers: names of copies, what a batch says, delivery, and the session."""

import gc
import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from nextrl.engines.judged_session import JudgedSession
from nextrl.engines.leap_session import LeapSession
from nextrl.engines.policies import Auto
from nextrl.engines.session import Session
from nextrl.engines.verl import state
from nextrl.engines.verl.delivery import delivery
from nextrl.engines.verl.forced_leaps import ForcedLeaps
from nextrl.engines.verl.latest_batch import Batch, batch_of
from nextrl.engines.verl.options import comparable
from nextrl.engines.verl.remote import StaleRollouts, VerlRun
from nextrl.engines.verl.remote_adapter import Workers
from nextrl.engines.verl.shards import Shards
from nextrl.errors import InputError
from nextrl.judge.controller import Controller
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import stay
from nextrl.judge.guard import Guard

TOKENS = 4


class Actor(nn.Module):
    """A policy over two tokens with an adapter: the logit of token 1 is b * a."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        adapted = nn.Module()
        adapted.lora_A, adapted.lora_B = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.layer = adapted
        nn.init.ones_(adapted.lora_A.weight)
        nn.init.zeros_(adapted.lora_B.weight)

    def log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        logit = (self.layer.lora_B.weight * self.layer.lora_A.weight).squeeze()
        return torch.where(ids == 1, -nn.functional.softplus(-logit), -nn.functional.softplus(logit))


class Training:
    """What verl does around the driver: samples, steps, and answers for its workers; the reward is the share of 1s."""

    def __init__(
        self, folder: Path, steps: int, rate: float, warm_up: int = 1, dtype: torch.dtype = torch.float32
    ) -> None:
        self.actor, self.steps = Actor(), steps
        self.optimizer = torch.optim.AdamW(self.actor.parameters(), lr=rate, weight_decay=0.0)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda n: min(1.0, (n + 1) / warm_up)
        )
        self.shards = Shards(self.actor, self.optimizer, self.scheduler, dtype)
        self.dtype = dtype
        self.untouched: list[bool] = []
        self.logged: list[dict[str, float]] = []
        self.calls: list[str] = []
        self.run = VerlRun(Workers(self.call), self.read, folder, steps, 64)
        self.step_number, self.delivered = 0, self.weights()
        self.deaf = self.flat = self.bypass = False
        self.random = torch.Generator().manual_seed(0)
        folder.mkdir(parents=True, exist_ok=True)

    def call(self, forgotten, method, *arguments):
        self.calls.append(method)
        self.shards.drop(forgotten)
        own = [a.format(world=1, rank=0) if isinstance(a, str) else a for a in arguments]
        return [getattr(self.shards, method)(*own)]

    def weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.actor.named_parameters()}

    def read(self) -> torch.Tensor:
        return self.actor.log_probabilities(self.ids).detach().to(self.dtype).float()

    def session(self, policy, **options) -> Session:
        if policy.undoes:
            return JudgedSession(self.run, policy, self.step_number, **options)
        return LeapSession(self.run, policy, Guard(), [], self.step_number, rollback=False, **options)

    def take(self, session: Session, steps: int) -> None:
        for _ in range(steps):
            session.step_begins(self.step_number)
            self.run.step_begins()
            self._train()
            self.step_number += 1
            trained = self.weights()
            session.step_ended(self.step_number)
            self.run.look_back(session.memory.start.state)
            self.logged.append(self.run.metrics)
            self.untouched.append(all(torch.equal(t, trained[n]) for n, t in self.weights().items()))
            if not self.deaf:
                self.delivered = self.weights()

    def _sample(self) -> torch.Tensor:
        """New tokens, and their log-probabilities as the servers report them."""
        p = float(self.actor.log_probabilities(torch.tensor(1)).exp().detach())
        self.ids = (torch.rand(64, TOKENS, generator=self.random) < p).long()
        return self.read()

    def _reward(self) -> torch.Tensor:
        return self.ids.double().mean(1)

    def _train(self) -> None:
        present = self.weights()
        self.actor.load_state_dict(self.delivered)
        sampled = self._sample()
        self.actor.load_state_dict(present)
        rewards = self._reward() * (not self.flat)
        groups = torch.arange(64) // 8
        centred = rewards - rewards.reshape(8, 8).mean(1)[groups]
        scores = torch.zeros(64, TOKENS)
        scores[:, -1] = rewards
        old = self.read() - float(self.bypass)  # in a bypass they are something else
        columns = {
            "old_log_probs": old, "rollout_log_probs": sampled, "response_mask": torch.ones(64, TOKENS),
            "advantages": centred[:, None].expand(-1, TOKENS), "rm_scores": scores,
        }  # fmt: skip
        self.run.stepped(batch_of(columns, [str(int(g)) for g in groups], [False] * 64))
        loss = -(centred[:, None] * self.actor.log_probabilities(self.ids)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()


def test_a_forced_leap_is_the_leap_and_moments_stay(tmp_path):
    training = Training(tmp_path, 6, 0.05)
    start, policy = training.weights(), ForcedLeaps({3: 1.5})
    session = training.session(policy)
    training.take(session, 2)
    training.step_number = 2
    session.step_begins(2)
    training.run.step_begins()
    training._train()
    stop = training.weights()
    moments = {k: v.clone() for k, v in training.optimizer.state[next(training.actor.parameters())].items()}
    training.step_number = 3
    session.step_ended(3)
    for name, p in training.actor.named_parameters():
        assert torch.equal(p, torch.lerp(start[name], stop[name], 2.5))
    assert not torch.equal(training.actor.layer.lora_B.weight, stop["layer.lora_B.weight"])
    after = training.optimizer.state[next(training.actor.parameters())]
    assert all(torch.equal(v, after[k]) for k, v in moments.items())
    [record] = session.decisions
    assert (record.step, record.method, record.alpha, record.horizon) == (3, "secant", 1.5, 3)
    assert training.run.metrics["leap/alpha"] == 1.5
    training.delivered = training.weights()
    training.take(session, 1)  # delivered: nothing is raised
    assert training.run.metrics["leap/rollout_off"] < 1e-6 < training.run.metrics["leap/rollout_off_before"]


def test_a_deaf_rollout_stops_the_run(tmp_path):
    training = Training(tmp_path, 6, 0.05)
    session = training.session(ForcedLeaps({3: 4.0}))
    training.take(session, 2)
    training.deaf = True
    training.take(session, 1)
    with pytest.raises(StaleRollouts, match="the change did not reach them"):
        training.take(session, 1)


class Sharp(Actor):
    """Logits (1 + b a) z over 200 tokens, other z at each place: training makes the policy sharper or flatter."""

    def __init__(self) -> None:
        super().__init__()
        self.z = torch.randn(64, TOKENS, 200, generator=torch.Generator().manual_seed(1)) * 3

    def all(self) -> torch.Tensor:
        sharpness = 1 + (self.layer.lora_B.weight * self.layer.lora_A.weight).squeeze()
        return (sharpness * self.z).log_softmax(-1)

    def log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        return self.all().gather(-1, ids[..., None])[..., 0]


class Truncated(Training):
    """Rollouts from a distribution that is cut off, and their log-probabilities under it, as vLLM reports them."""

    def __init__(self, folder: Path, rate: float, top_p: float = 1.0, top_k: int = -1) -> None:
        super().__init__(folder, 10, rate)
        self.actor, self.top_p, self.top_k = Sharp(), top_p, top_k
        self.optimizer = torch.optim.AdamW(self.actor.parameters(), lr=rate, weight_decay=0.0)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: 1.0)
        self.shards = Shards(self.actor, self.optimizer, self.scheduler, self.dtype)
        self.delivered = self.weights()
        self.run.comparable = comparable({"top_p": top_p, "top_k": top_k})

    def _sample(self) -> torch.Tensor:
        likely, order = self.actor.all().detach().exp().sort(-1, descending=True)
        keep = (likely.cumsum(-1) - likely) < self.top_p
        if self.top_k > 0:
            keep[..., self.top_k :] = False
        cut = torch.where(keep, likely, 0.0)
        cut = cut / cut.sum(-1, keepdim=True)
        chosen = torch.multinomial(cut.flatten(0, 1), 1, generator=self.random).reshape(64, TOKENS, 1)
        self.ids = order.gather(-1, chosen)[..., 0]
        return cut.gather(-1, chosen)[..., 0].log()

    def _reward(self) -> torch.Tensor:
        return (self.ids == self.actor.z.argmax(-1)).double().mean(1)


CUT = [{}, {"top_p": 0.95}, {"top_p": 0.9}, {"top_p": 0.8}, {"top_k": 20}, {"top_p": 0.5}]


@pytest.mark.parametrize("rate", [0.02, 0.08])
@pytest.mark.parametrize("cut", CUT)
def test_rollouts_that_followed_are_taken_for_such_under_any_truncation(tmp_path, cut, rate, caplog):
    training = Truncated(tmp_path, rate, **cut)
    training.take(training.session(ForcedLeaps({5: -1.0})), 6)
    assert "leap/rollout_off" in training.logged[5]
    assert "it looks as if" not in caplog.text
    if training.run.comparable:
        assert abs(training.logged[5]["leap/rollout_stale"]) < 0.2


@pytest.mark.parametrize("rate", [0.02, 0.08])
@pytest.mark.parametrize("cut", CUT)
def test_rollouts_that_did_not_follow_are_found_out(tmp_path, cut, rate, caplog):
    """Under `top_k`, and far less than all of the distribution, only with a warning, if at all."""
    training = Truncated(tmp_path, rate, **cut)
    session = training.session(ForcedLeaps({5: -1.0}))
    training.take(session, 4)
    training.deaf = True
    training.take(session, 1)
    if training.run.comparable:
        with pytest.raises(StaleRollouts, match="the change did not reach them"):
            training.take(session, 1)
    else:
        training.take(session, 1)
        warned = [r.getMessage() for r in caplog.records if "it looks as if" in r.getMessage()]
        assert len(warned) == 1 or "top_k" not in cut


def test_what_rollouts_cannot_tell_is_not_taken_for_stale():
    sampled, old = torch.zeros(4, 3).double(), torch.ones(4, 3).double()
    nothing = delivery(sampled, sampled, old, torch.zeros(4, 3, dtype=torch.bool))
    constant = delivery(sampled, sampled, old, torch.ones(4, 3, dtype=torch.bool))
    one = torch.randn(1, 30, generator=torch.Generator().manual_seed(0)).double()
    single = delivery(one, torch.zeros(1, 30).double(), one, torch.ones(1, 30, dtype=torch.bool))
    assert not any(found.stale or found.surely_stale for found in (nothing, constant, single))


def test_auto_raises_a_cautious_rate_and_the_reward_rises(tmp_path):
    training = Training(tmp_path, 20, 1e-6)
    session = training.session(Auto(ControllerConfig(every=3)))
    training.take(session, 20)
    assert max(d.rate_factor for d in session.decisions) > 10.0
    assert training.run.rate > 1e-4
    assert training.run.rewards.latest > 0.55
    lines = (tmp_path / "nextrl_decisions.jsonl").read_text().splitlines()
    assert len(lines) == len(session.decisions)
    assert "keep_along" in training.calls


@pytest.mark.parametrize("warm_up", [1, 4])
def test_what_half_precision_rounds_away_is_a_rate_too_low_and_no_missing_gradient(tmp_path, warm_up):
    training = Training(tmp_path, 20, 1e-7, warm_up, torch.bfloat16)
    training.take(training.session(Auto(ControllerConfig(every=3))), 12)
    assert training.run.rate > 1e-3


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_weights_in_half_precision_that_a_step_rounds_away_are_a_rate_too_low(tmp_path, start):
    """`model_dtype=bf16`: 1e-6 is less than the last digit of .5, so that no weight moves at all."""
    training = Training(tmp_path, 100, 1e-6, dtype=torch.bfloat16)
    training.actor.to(torch.bfloat16)
    torch.nn.init.constant_(training.actor.layer.lora_B.weight, start)
    training.delivered = training.weights()
    training.take(training.session(Auto(ControllerConfig(every=3))), 12)
    assert training.run.rate > 1e-3


def test_without_a_gradient_weights_in_half_precision_say_nothing_of_the_rate(tmp_path):
    """Adam's moments appear at such a step, too."""
    training = Training(tmp_path, 100, 1e-6, dtype=torch.bfloat16)
    training.actor.to(torch.bfloat16)
    torch.nn.init.constant_(training.actor.layer.lora_B.weight, 0.5)
    training.delivered = training.weights()
    training.flat = True
    training.take(training.session(Auto(ControllerConfig(every=30))), 6)
    assert training.run.rate == 1e-6


def test_without_a_gradient_nothing_is_raised(tmp_path):
    training = Training(tmp_path, 20, 1e-4, dtype=torch.bfloat16)
    training.flat = True
    training.take(training.session(Auto(ControllerConfig(every=30))), 12)
    assert training.run.rate == 1e-4


def test_where_verl_has_not_computed_the_actors_log_probabilities_they_are_read(tmp_path):
    """`rollout_correction.bypass_mode`: the batch then holds the rollout's own in their place."""
    decided = []
    for bypass in (False, True):
        training = Training(tmp_path, 20, 1e-4)
        training.bypass, training.run.latest.exact = bypass, not bypass
        session = training.session(Auto(ControllerConfig(every=3)))
        training.take(session, 12)
        decided.append([d.model_dump() for d in session.decisions])
    assert decided[0]
    assert decided[0] == decided[1]


def test_a_reckless_step_is_taken_back_with_its_moments(tmp_path):
    training = Training(tmp_path, 20, 3.0)
    start = training.weights()
    session = training.session(Auto(ControllerConfig(every=3)))
    training.take(session, 1)
    assert session.decisions[0].back == "step"
    assert all(torch.equal(p, start[n]) for n, p in training.actor.named_parameters())
    assert not any(training.optimizer.state[p] for p in training.actor.parameters())
    assert training.run.rate < 3.0


def test_looking_leaves_the_weights_as_they_were(tmp_path):
    training = Training(tmp_path, 20, 1e-2)
    training.take(training.session(Auto(ControllerConfig(every=3)), leaps=False), 20)
    assert "keep_along" in training.calls
    assert all(training.untouched)


def test_an_interrupt_while_other_weights_are_written_leaves_the_run_s_own(tmp_path, monkeypatch):
    training = Training(tmp_path, 20, 1e-2)
    adapter, write, torn = training.run.adapter, training.run.adapter.write, []
    start = adapter.read()
    training.take(training.session(Auto(ControllerConfig(every=3))), 2)
    present = training.weights()

    def interrupted(held):
        write(held)
        if held is start and not torn:
            torn.append(training.weights())
            raise KeyboardInterrupt

    monkeypatch.setattr(adapter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt), adapter.holding(start):
        pass
    assert any(not torch.equal(torn[0][n], p) for n, p in present.items())
    assert all(torch.equal(p, present[n]) for n, p in training.weights().items())


def test_the_way_of_each_window_is_logged(tmp_path):
    training = Training(tmp_path, 8, 0.01)
    begun = training.weights()
    session = training.session(ForcedLeaps({2: 0.0, 3: 0.5, 6: 0.0}))
    training.run.look_back(session.memory.start.state)
    starts = [begun]
    for step in range(1, 8):
        training.take(session, 1)
        if step in (2, 3, 6):
            starts.append(training.weights())
    ways = [
        torch.cat([(new[n] - old[n]).double().flatten() for n in old])
        for old, new in itertools.pairwise(starts)
    ]
    ended = {step: training.logged[step - 1] for step in (2, 3, 6)}
    for way, logged in zip(ways, ended.values(), strict=True):
        assert logged["leap/moved"] == pytest.approx(float(way.norm()), rel=1e-6)
    assert "leap/persistence" not in ended[2]
    for step, one, two in ((3, *ways[:2]), (6, *ways[1:])):
        cosine = float(torch.cosine_similarity(one, two, dim=0))
        assert ended[step]["leap/persistence"] == pytest.approx(cosine, rel=1e-6)
    for step in (1, 4, 5, 7):
        assert "leap/moved" not in training.logged[step - 1]


def test_a_window_that_is_taken_back_has_no_way(tmp_path):
    training = Training(tmp_path, 20, 3.0)
    session = training.session(Auto(ControllerConfig(every=3)))
    training.run.look_back(session.memory.start.state)
    training.take(session, 1)
    assert session.decisions[0].back == "step"
    assert "leap/moved" not in training.logged[0]


def test_a_warm_up_is_seen_as_such(tmp_path):
    training = Training(tmp_path, 8, 1e-4, warm_up=4)
    session = training.session(Auto(ControllerConfig(every=3)), adapt_lr=False)
    shares = []
    for _ in range(6):
        shares.append(training.run.share)
        training.take(session, 1)
    assert shares == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_options_that_forbid_moves_and_rates(tmp_path):
    training = Training(tmp_path, 20, 3.0)
    session = training.session(Auto(ControllerConfig(every=3)), adapt_lr=False)
    training.take(session, 6)
    assert training.run.rate == 3.0
    training = Training(tmp_path, 20, 3.0)
    session = training.session(Auto(ControllerConfig(every=3)), leaps=False)
    training.take(session, 1)
    assert training.run.rate < 3.0
    assert not session.decisions[0].back


def test_copies_are_forgotten(tmp_path):
    training = Training(tmp_path, 40, 1e-3)
    session = training.session(Auto(ControllerConfig(every=3)))
    training.take(session, 30)
    gc.collect()
    training.run.workers.ask("rates")
    # The last window's start, this one's, the present weights, and a beginning of a step that is still watched.
    assert len(training.shards._copies) <= 4
    assert len(training.shards._moments) <= 3


BOLD = {"goal": 1e-12, "bold": 1e-12, "rise": 1e9, "undo": 1e9, "harm": 1e9, "sure": 1e9}
"""Dials under which every run begins again once its probation is over, if it is long enough."""


def test_a_bold_start_begins_again_to_the_bit_and_goes_on_at_the_lower_rate(tmp_path):
    training = Training(tmp_path, 100, 1e-2)
    start = training.weights()
    session = training.session(Auto(ControllerConfig(every=3, **BOLD)))
    for _ in range(40):
        training.take(session, 1)
        if session.decisions and session.decisions[-1].back:
            break
    assert session.decisions[-1].back == "run"
    assert training.step_number >= 25
    assert all(torch.equal(p, start[n]) for n, p in training.actor.named_parameters())
    assert not any(training.optimizer.state[p] for p in training.actor.parameters())
    assert session.memory.origin is None
    assert session.costs.leapt_steps == -training.step_number


def test_a_reckless_step_right_after_a_bold_one_begins_the_run_again(tmp_path):
    training = Training(tmp_path, 100, 1e-2)
    start = training.weights()
    dials = ControllerConfig(every=9, goal=1e-12, bold=1e-12, reckless=1e-11, ruinous=1e9)
    session = training.session(Auto(dials))
    training.take(session, 1)
    assert not session.decisions
    training.take(session, 1)
    assert [(d.step, d.back) for d in session.decisions] == [(2, "run")]
    assert all(torch.equal(p, start[n]) for n, p in training.actor.named_parameters())
    assert not any(training.optimizer.state[p] for p in training.actor.parameters())
    assert session.memory.origin is None
    assert session.costs.leapt_steps == -2


class BeginsAgain(Controller):
    """Begins again once, after 30 steps."""

    may_begin_again = True
    begun = False

    def checks(self, step):
        return False

    def window(self, window, look):
        if self.begun or window.step < 30:
            return stay("not yet, or no more")
        self.begun = True
        return replace(stay("again"), alpha=-1.0, rate_factor=0.04, back="run")


def test_a_fresh_optimizer_s_first_step_is_not_held_against_the_rate(tmp_path):
    """It is long beside the last one before, which had no gradient left: no sign that the rate is not heeded."""
    training = Training(tmp_path, 100, 1e-2)
    session = training.session(Auto(ControllerConfig(every=3), BeginsAgain))
    while not session.policy.controller.begun:
        training.flat = training.step_number > 1
        training.take(session, 1)
        assert training.step_number < 60
    training.flat = False
    training.take(session, 4)
    assert training.run.rate == pytest.approx(4e-4)


@pytest.mark.parametrize(
    ("steps", "options"), [(59, {}), (100, {"adapt_lr": False}), (100, {"leaps": False})]
)
def test_runs_that_do_not_begin_again(tmp_path, steps, options):
    training = Training(tmp_path, steps, 1e-2)
    session = training.session(Auto(ControllerConfig(every=3, **BOLD)), **options)
    training.take(session, 40)
    assert not any(d.back for d in session.decisions)
    assert session.memory.origin is None


def test_a_run_resumed_under_another_policy_begins_where_it_was_resumed(tmp_path):
    for before, after in ((ForcedLeaps({3: 1.0}), Auto()), (Auto(), ForcedLeaps({3: 1.0}))):
        folder = tmp_path / after.method
        first = Training(folder / "first", 20, 1e-4)
        begun = first.session(before)
        first.take(begun, 1)
        state.save(folder / "global_step_1", first.run, begun)
        second = Training(folder / "second", 20, 1e-4)
        second.actor.load_state_dict(first.actor.state_dict())
        second.step_number = 1
        resumed = second.session(after)
        assert state.load(folder / "global_step_1", second.run, resumed, 1)
        assert (resumed.memory.origin is not None) == after.undoes


def test_the_way_of_a_forced_leap_is_counted_from_where_it_begins(tmp_path):
    """Where the run was resumed without a state; at the start of the window that `auto` had begun; at the last leap."""
    plain = Training(tmp_path / "plain", 100, 1e-4)
    plain.step_number = 20
    session = plain.session(ForcedLeaps({25: 1.0, 28: 2.0}))
    assert not state.load(tmp_path / "plain" / "global_step_20", plain.run, session, 20)
    plain.take(session, 8)
    assert [(d.step, d.horizon, d.claimed_steps) for d in session.decisions] == [(25, 5, 5.0), (28, 3, 11.0)]

    auto = Training(tmp_path / "auto", 100, 1e-4)
    begun = auto.session(Auto(ControllerConfig(every=3)))
    auto.take(begun, 5)
    state.save(tmp_path / "global_step_5", auto.run, begun)
    second = Training(tmp_path / "second", 100, 1e-4)
    second.actor.load_state_dict(auto.actor.state_dict())
    second.step_number, second.delivered = 5, second.weights()
    resumed = second.session(ForcedLeaps({7: 1.0}))
    assert state.load(tmp_path / "global_step_5", second.run, resumed, 5)
    since = resumed.memory.start.step
    assert 0 < since < 5
    second.take(resumed, 2)
    assert resumed.decisions[-1].horizon == 7 - since


@pytest.mark.parametrize(
    ("stop", "dials"),
    [
        (1, {}),
        (2, {}),
        (5, {}),
        (8, {}),
        (5, BOLD),
        (12, BOLD),
        (1, {"every": 30, **BOLD}),
        (2, {"every": 30}),
    ],
)
def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path, stop, dials):
    def policy():
        return Auto(ControllerConfig(**{"every": 3, **dials}))

    straight = Training(tmp_path / "straight", 100, 1e-4)
    session = straight.session(policy())
    straight.take(session, 30)
    assert any(d.back == "run" for d in session.decisions) == ("rise" in dials)

    first = Training(tmp_path / "first", 100, 1e-4)
    begun = first.session(policy())
    first.take(begun, stop)
    state.save(tmp_path / "global_step", first.run, begun)
    second = Training(tmp_path / "second", 100, 1e-4)
    # What verl itself brings back: weights, moments, rates, its place in the data, and delivery.
    second.actor.load_state_dict(first.actor.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.scheduler.load_state_dict(first.scheduler.state_dict())
    second.random, second.step_number = first.random, stop
    second.delivered = second.weights()
    resumed = second.session(policy())
    assert state.load(tmp_path / "global_step", second.run, resumed, stop)
    second.take(resumed, 30 - stop)
    assert [d.model_dump() for d in resumed.decisions] == [d.model_dump() for d in session.decisions]
    assert second.weights().keys() == straight.weights().keys()
    assert all(torch.equal(t, straight.weights()[n]) for n, t in second.weights().items())


@pytest.mark.parametrize("schedule", [True, False])
@pytest.mark.parametrize("optimizer", [True, False])
def test_a_rate_outlives_a_checkpoint_that_lacks_the_optimizer_or_the_schedule(tmp_path, optimizer, schedule):
    """`actor.checkpoint.save_contents=[model]`: verl then begins optimizer, schedule or both at the configured rate."""
    first = Training(tmp_path / "first", 100, 1e-6)
    begun = first.session(Auto(ControllerConfig(every=3)))
    first.take(begun, 12)
    rate = first.run.rate
    assert begun.memory.factor > 100.0
    state.save(tmp_path / "global_step", first.run, begun)
    second = Training(tmp_path / "second", 100, 1e-6)
    second.actor.load_state_dict(first.actor.state_dict())
    if optimizer:
        second.optimizer.load_state_dict(first.optimizer.state_dict())
    if schedule:
        second.scheduler.load_state_dict(first.scheduler.state_dict())
    second.random, second.step_number, second.delivered = first.random, 12, second.weights()
    resumed = second.session(Auto(ControllerConfig(every=3)))
    assert state.load(tmp_path / "global_step", second.run, resumed, 12)
    assert second.run.rate == pytest.approx(rate, rel=1e-9)
    # Whatever the schedule makes of it in the steps that follow.
    second.scheduler.step()
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-9)


def test_a_warm_up_that_begins_anew_leads_to_the_rate_that_was_found(tmp_path):
    first = Training(tmp_path / "first", 100, 1e-6, warm_up=4)
    begun = first.session(Auto(ControllerConfig(every=3)))
    first.take(begun, 12)
    rate = first.run.rate
    state.save(tmp_path / "global_step", first.run, begun)
    second = Training(tmp_path / "second", 100, 1e-6, warm_up=4)
    second.actor.load_state_dict(first.actor.state_dict())
    second.step_number = 12
    assert state.load(
        tmp_path / "global_step", second.run, second.session(Auto(ControllerConfig(every=3))), 12
    )
    assert second.run.rate == pytest.approx(rate / 4, rel=1e-9)
    second.scheduler.step()
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(rate / 2, rel=1e-9)


def test_a_state_that_was_written_beside_other_weights_is_left_alone(tmp_path, caplog):
    """A run without nextrl wrote `global_step_12/actor` anew (`trainer.resume_mode=disable`) and left `nextrl/`."""
    first = Training(tmp_path / "first", 100, 1e-6)
    begun = first.session(Auto(ControllerConfig(every=3)))
    first.take(begun, 12)
    state.save(tmp_path / "global_step", first.run, begun)

    def resumed(change):
        second = Training(tmp_path / "second", 100, 1e-6)
        second.actor.load_state_dict(first.actor.state_dict())
        change(second)
        second.step_number = 12
        session = second.session(Auto(ControllerConfig(every=3)))
        return state.load(tmp_path / "global_step", second.run, session, 12), second, session

    def other_weights(second):
        with torch.no_grad():
            second.actor.layer.lora_B.weight += 1e-7

    taken, _, _ = resumed(lambda second: None)
    assert taken
    caplog.clear()
    taken, second, session = resumed(other_weights)
    assert not taken
    assert (second.run.rate, session.memory.factor, session.decisions) == (1e-6, 1.0, [])
    assert "written beside other weights than those that were loaded" in caplog.text


def test_a_checkpoint_without_state_begins_anew_and_a_damaged_one_is_refused(tmp_path):
    training = Training(tmp_path / "run", 6, 1e-3)
    with pytest.raises(InputError, match="this run goes from step 0 to 6, and never comes to step 7, 9"):
        training.session(ForcedLeaps({9: 1.0, 7: 1.0}))
    over = training.session(ForcedLeaps({3: 1.0}))
    with pytest.raises(InputError, match="this run goes from step 3 to 6, and never comes to step 3"):
        state.load(tmp_path / "global_step_3", training.run, over, 3)
    session = training.session(ForcedLeaps({3: 1.0, 5: 1.0}))
    assert not state.load(tmp_path / "global_step_3", training.run, session, 3)
    state.save(tmp_path / "global_step_3", training.run, session)
    path = tmp_path / "global_step_3" / "nextrl" / "state.json"
    whole = json.loads(path.read_text())
    for damaged, why in (
        ({**whole, "version": 3}, "is of version 3, not 4"),
        ({k: v for k, v in whole.items() if k != "weights"}, r"state.json is damaged \(KeyError"),
        ({k: v for k, v in whole.items() if k != "memory"}, r"state.json is damaged \(KeyError"),
        ({**whole, "costs": {"unknown": 1}}, r"state.json is damaged \(TypeError"),
        ({**whole, "decisions": [{"step": "no number"}]}, r"state.json is damaged \(ValidationError"),
        ([], r"state.json is damaged \(TypeError"),
    ):
        path.write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=why):
            state.load(tmp_path / "global_step_3", training.run, session, 3)
    path.write_text("{")
    with pytest.raises(InputError, match=r"state\.json: not readable as JSON"):
        state.load(tmp_path / "global_step_3", training.run, session, 3)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="is a pipe, not a file"):
        state.load(tmp_path / "global_step_3", training.run, session, 3)


@pytest.mark.parametrize(("good", "back"), [(6, "step"), (7, "window")])
def test_what_a_step_to_nan_did_is_taken_back(tmp_path, good, back):
    """The 7th step is looked at, since a window ended before it; the 8th for no other reason."""
    training = Training(tmp_path, 100, 1e-3)
    session = training.session(Auto(ControllerConfig(every=6, cooldown=0.0)))
    training.take(session, good)
    trained = training._train

    def ruined():
        trained()
        with torch.no_grad():
            training.actor.layer.lora_B.weight.fill_(math.nan)

    training._train = ruined
    training.take(session, 1)
    assert session.decisions[-1].back == back
    assert "NaN" in session.decisions[-1].reason
    assert all(p.isfinite().all() for p in training.actor.parameters())
    with pytest.raises(InputError, match="5 steps in a row left NaN or Inf"):
        training.take(session, 5)
    assert all(p.isfinite().all() for p in training.actor.parameters())


def test_the_state_goes_with_the_actor_that_verl_removes(tmp_path):
    for step in (1, 2):
        (tmp_path / f"global_step_{step}" / "nextrl").mkdir(parents=True)
        (tmp_path / f"global_step_{step}" / "nextrl" / "state.json").write_text("{}")
    (tmp_path / "global_step_2" / "actor").mkdir()
    state.prune(tmp_path, 2)
    assert not (tmp_path / "global_step_1" / "nextrl").exists()
    assert (tmp_path / "global_step_2" / "nextrl" / "state.json").is_file()


def test_the_state_just_saved_is_kept_where_the_actor_lies_on_another_machine(tmp_path):
    for step in (1, 2):
        (tmp_path / f"global_step_{step}" / "nextrl").mkdir(parents=True)
    state.prune(tmp_path, 2)
    for step in (1, 2):
        assert (tmp_path / f"global_step_{step}" / "nextrl").is_dir()


def test_without_a_state_the_decisions_up_to_the_checkpoint_are_kept_and_a_line_says_so(tmp_path, caplog):
    first = Training(tmp_path, 100, 1e-6)
    begun = first.session(Auto(ControllerConfig(every=3)))
    first.take(begun, 6)
    kept = [d for d in begun.decisions if d.step <= 3]
    assert 0 < len(kept) < len(begun.decisions)
    second = Training(tmp_path, 100, 1e-6)
    second.step_number = 3
    session = second.session(Auto(ControllerConfig(every=3)))
    caplog.clear()
    assert not state.load(tmp_path / "global_step_3", second.run, session, 3)
    assert session.decisions == kept
    [line] = [record.getMessage() for record in caplog.records]
    assert "global_step_3 holds no state of nextrl" in line
    assert "\n" not in line


def test_rows_that_fill_a_batch_up_do_not_count():
    columns = {
        "old_log_probs": torch.zeros(3, 2), "rollout_log_probs": torch.zeros(3, 2),
        "response_mask": torch.tensor([[1, 1], [1, 0], [1, 1]]),
        "advantages": torch.tensor([[1.0, 1.0], [2.0, 9.0], [7.0, 7.0]]),
        "rm_scores": torch.tensor([[0.0, 1.0], [0.5, 0.0], [8.0, 8.0]]),
    }  # fmt: skip
    batch: Batch = batch_of(columns, ["a", "a", "b"], [False, False, True])
    assert batch.reward == 0.75
    assert batch.mask.tolist() == [[1, 1], [1, 0], [0, 0]]
    assert batch.advantages[:2].tolist() == [1.0, 2.0]
    assert batch.groups[0] == batch.groups[1] != batch.groups[2]
    assert math.isnan(batch_of(columns, ["a"] * 3, [True] * 3).reward)


@pytest.mark.parametrize("by_std", [True, False])
@pytest.mark.parametrize("reward", [0.1, 0.7, 1e6 + 0.1])
def test_prompts_whose_completions_earned_the_same_are_not_informative(reward, by_std):
    """A mean of equal rewards is not the reward in float32: as verl's compute_grpo_outcome_advantage has it."""
    uids = [str(i // 7) for i in range(21)]
    mask = (torch.arange(5) < 1 + torch.arange(21)[:, None] % 5).float()
    rewards = torch.tensor([reward] * 14 + [reward, 0.0] * 3 + [reward])
    groups = rewards.view(3, 7)
    scores = groups - groups.mean(1, keepdim=True)
    scores = scores / (groups.std(1, keepdim=True) + 1e-6) if by_std else scores
    advantages = scores.view(21, 1) * mask
    assert bool((advantages[:14] != 0).any())
    columns = {name: torch.zeros(21, 5) for name in ("old_log_probs", "rollout_log_probs")}
    columns |= {"response_mask": mask, "advantages": advantages, "rm_scores": rewards[:, None] * mask}
    batch = batch_of(columns, uids, [False] * 21, centred=True)
    assert batch.advantages[:14].eq(0).all()
    assert batch.advantages[14:].ne(0).all()
    # Another baseline than the group's: such advantages say something.
    assert batch_of(columns, uids, [False] * 21).advantages[:14].ne(0).any()
