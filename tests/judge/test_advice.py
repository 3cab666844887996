"""Advice: the rule on plain numbers, the measurements on runs that are understood, the files of a trainer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import synthetic_runs as synthetic
from nextrl.cli.next_step import next_step
from nextrl.engines import decision_log
from nextrl.errors import InputError, TooShort
from nextrl.judge import advice_features
from nextrl.judge.advice_features import AdviceFeatures, features
from nextrl.judge.advice_signs import Thresholds
from nextrl.judge.advise import advise, decide
from nextrl.judge.analysis import analyze
from nextrl.judge.decision import DecisionRecord
from nextrl.judge.regime import PersistenceWindow
from nextrl.leaps.leap import leap
from nextrl.trajectory import trainer_log
from nextrl.trajectory.persistence import adam_persistence, excess
from nextrl.trajectory.trajectory import Trajectory
from synthetic_runs import measured


@pytest.mark.parametrize(
    ("seen", "regime", "action"),
    [
        (measured(0.95, recommended="factors", horizon=50, skill=0.9), "signal", "leap"),
        (measured(0.95), "signal", "raise_lr"),
        (measured(0.5, recommended="factors", horizon=50, skill=0.5), "mixed", "raise_lr"),
        (measured(0.0, reward=0.5, best=0.5, rise=0.1), "noise", "continue"),
        (measured(0.0, reward=0.5, best=0.5, rise=0.0), "noise", "average"),
        (measured(0.0), "noise", "average"),
        (measured(-0.5), "noise", "lower_lr"),
        (measured(0.9, reward=0.1, best=0.8, rise=-0.7, recommended="factors"), "signal", "lower_lr"),
        # No reward left: the path glides on momentum, as straight as one whose rate is far too low.
        (measured(0.97, reward=0.0, best=0.04, rise=0.0, first=0.1, recommended="dmd"), "signal", "lower_lr"),
        # Straight because it learns: three windows closed most of the room.
        (measured(0.7, reward=0.8, best=0.8, rise=0.33, first=0.4), "mixed", "continue"),
        (measured(0.5, reward=0.95, best=0.95, rise=0.01, first=0.4), "mixed", "raise_lr"),
        # Straight and flat: too low. No direction and nothing learned since the start: too high.
        (measured(0.3, reward=0.25, best=0.27, rise=0.0, first=0.25), "mixed", "raise_lr"),
        (measured(0.0, reward=0.23, best=0.25, rise=0.0, first=0.25), "noise", "lower_lr"),
        (measured(0.0, reward=0.50, best=0.52, rise=0.0, first=0.25), "noise", "average"),
        # Turning back is a bad sign only where the reward does not race ahead.
        (measured(-0.45, reward=0.8, best=0.8, rise=0.02, first=0.4), "noise", "lower_lr"),
        (measured(-0.45, reward=0.93, best=0.93, rise=0.26, first=0.4), "noise", "continue"),
    ],
)
def test_rule(seen: AdviceFeatures, regime: str, action: str) -> None:
    advice = decide(seen)
    assert (advice.regime, advice.advice) == (regime, action)
    assert advice.reasons
    assert advice.confidence in ("low", "medium", "high")
    assert (advice.factor is None) == (action in ("continue", "average"))
    json.dumps(advice.as_dict())


def test_ruined_run_is_told_to_start_over_far_lower() -> None:
    ruined = decide(measured(0.97, reward=0.0, best=0.04, rise=0.0, first=0.1))
    overshot = decide(measured(0.0, reward=0.5, best=0.7, rise=-0.1, first=0.2))
    assert ruined.factor is not None
    assert overshot.factor is not None
    assert ruined.factor < overshot.factor < 1
    assert "Start over" in ruined.reasons[1]
    assert "Start over" not in " ".join(overshot.reasons)


@pytest.mark.parametrize("scale", [10.0, -1.0])
def test_rewards_that_are_no_shares_of_one_say_nothing_about_room(scale: float) -> None:
    seen = measured(0.7, reward=0.8 * scale, best=0.8 * scale, rise=0.3 * abs(scale), first=0.5 * scale)
    assert (seen.closing, seen.learned) == (0.0, None)
    assert decide(seen).advice == "raise_lr"


def test_a_stored_rule_can_be_tried_with_other_thresholds() -> None:
    seen = measured(0.3)
    assert decide(seen).advice == "raise_lr"
    assert decide(seen, Thresholds(faster=0.35)).advice == "continue"


def test_straight_run_is_told_to_leap() -> None:
    advice = advise(synthetic.run(synthetic.line))
    assert advice.advice == "leap"
    assert advice.features.excess == pytest.approx(1.0)
    assert "assumed; no optimizer.pt that can be read" in advice.reasons[0]


def test_noise_is_not_told_to_leap() -> None:
    assert advise(synthetic.run(synthetic.walk(0.0))).advice in ("continue", "average", "lower_lr")
    assert advise(synthetic.run(synthetic.noise)).advice == "lower_lr"


def test_too_few_checkpoints() -> None:
    with pytest.raises(TooShort, match="needs 3 checkpoints"):
        advise(synthetic.run(synthetic.line, (10,)))
    with pytest.raises(TooShort, match="does not move"):
        advise(synthetic.run(lambda t, p, q, noise: p))


def test_a_run_too_short_to_backtest_is_told_apart_from_one_that_is_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traj = synthetic.run(synthetic.line)

    def refuse(error: InputError) -> None:
        def backtest(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(advice_features, "backtest", backtest)

    refuse(TooShort("a backtest needs at least 3 checkpoints"))
    seen = features(traj)
    assert (seen.backtested, seen.recommended) == (False, "none")
    refuse(InputError("checkpoint-30/adapter_model.safetensors: cannot be read any more"))
    with pytest.raises(InputError, match="cannot be read any more"):
        features(traj)


@pytest.fixture
def saved(tmp_path) -> Trajectory:
    """A run on disk with what a trainer leaves beside it."""
    end = [{"step": 160, "train_loss": 1.0}]
    synthetic.write(tmp_path, synthetic.walk(2.0), lambda t: t / 200, beta1=0.8, more=end)
    return Trajectory.load(tmp_path)


def test_reads_what_the_trainer_left(saved: Trajectory) -> None:
    seen = features(saved)
    assert (seen.beta1, seen.beta1_known) == (0.8, True)
    assert seen.reward == pytest.approx(0.75, abs=0.02)
    assert seen.first == pytest.approx(5.5 / 200)
    early = trainer_log.rewards(saved.upto(50))
    assert max(early) == 50


def test_an_evaluation_and_the_summary_at_the_end_are_no_training_rewards(tmp_path) -> None:
    # As TRL logs them: after the step's own entry, under its step.
    more = [{"step": t, "eval_reward": 0.1, "eval_loss": 0.0} for t in (50, 100, 150, 160)]
    more += [{"step": t, "eval_loss": 0.0, "reward": 0.1, "learning_rate": 9.0} for t in (50, 100, 150, 160)]
    more += [{"step": 160, "train_runtime": 1.0, "train_loss": 0.0, "reward": 0.1, "learning_rate": 9.0}]
    synthetic.write(tmp_path, synthetic.walk(2.0), lambda t: 0.5 + t / 400, more=more)
    traj = Trajectory.load(tmp_path)
    assert trainer_log.rewards(traj) == {t: 0.5 + t / 400 for t in range(1, 161)}
    assert trainer_log.peak_learning_rate(traj) == 5e-5
    assert advise(traj).advice != "lower_lr"


def test_what_the_trainer_evaluated_in_the_same_entry_takes_nothing_from_training(tmp_path) -> None:
    more = [{"step": 160, "loss": 0.0, "reward": 0.75, "eval_reward": 0.1}]
    synthetic.write(tmp_path, synthetic.walk(2.0), lambda t: 0.5, more=more)
    assert trainer_log.rewards(Trajectory.load(tmp_path))[160] == 0.75


def nested(run: Path) -> dict[int, Path]:
    """The run with each adapter in a folder of its own inside its checkpoint, as PEFT saves a named one."""
    found = {}
    for checkpoint in run.glob("checkpoint-*"):
        adapter = checkpoint / "policy"
        adapter.mkdir()
        for file in checkpoint.glob("adapter_*"):
            file.rename(adapter / file.name)
        found[int(checkpoint.name.partition("-")[2])] = adapter
    return found


def test_what_the_trainer_left_is_found_beside_named_adapters(tmp_path: Path) -> None:
    """They lie one level deeper than the log; without it a ruined run looks like one that a leap is due in."""
    synthetic.write(tmp_path, synthetic.line, lambda t: 0.6 if t < 100 else 0.01, beta1=0.8)
    decision_log.begin(tmp_path, [DecisionRecord(step=100, alpha=0.0, reason="its word", learning_rate=5e-5)])
    plain = advise(Trajectory.load(tmp_path))
    assert (plain.advice, plain.factor) == ("lower_lr", 0.1)
    assert "its word" in plain.features.auto
    assert advise(Trajectory.load(nested(tmp_path))).as_dict() == plain.as_dict()


def test_where_old_checkpoints_were_deleted_the_log_still_has_its_windows(tmp_path: Path) -> None:
    """`save_total_limit` leaves the last few; the mean of all steps before them is no window beside windows of ten."""
    learns = [min(0.8, 0.2 + 0.01 * t) for t in range(161)]  # flat since step 60
    synthetic.write(tmp_path, synthetic.walk(0.0), learns.__getitem__)
    every = Trajectory.load(tmp_path)
    few = every.at([140, 150, 160])
    logged = trainer_log.rewards(few)
    assert trainer_log.rewards_by_window(few, logged) == trainer_log.rewards_by_window(every, logged)
    names = ("reward", "best", "rise", "first", "fall_by_chance", "rise_by_chance")
    whole, seen = features(every), features(few)
    assert {name: getattr(seen, name) for name in names} == {name: getattr(whole, name) for name in names}
    assert "still rises" not in advise(few).answer


def test_windows_of_rewards_in_an_uneven_stretch_end_at_its_checkpoints(tmp_path: Path) -> None:
    synthetic.write(tmp_path, synthetic.walk(0.0), lambda t: t / 200)
    few = Trajectory.load(tmp_path).at([30, 40, 50, 160])
    windows = trainer_log.rewards_by_window(few, dict.fromkeys(range(161), 0.5))
    assert list(windows) == list(range(10, 161, 10))
    assert {len(window) for window in list(windows.values())[1:]} == {10}
    # Steps 51 to 54 are too few for a window of their own.
    moved = synthetic.run(synthetic.line, (30, 40, 50, 74))
    windows = trainer_log.rewards_by_window(moved, dict.fromkeys(range(1, 90), 0.5))
    assert {end: len(window) for end, window in windows.items()} == {
        **dict.fromkeys((10, 20, 30, 40, 50), 10),
        64: 14,
        74: 10,
    }
    assert set(trainer_log.reward_by_checkpoint(moved, dict.fromkeys(range(1, 90), 0.5))) == {30, 40, 50, 74}


def test_the_runs_own_folder_is_not_taken_for_a_checkpoints(tmp_path: Path) -> None:
    """A trainer writes its log there too, when it ends; the decisions lie beside the checkpoints all the same."""
    synthetic.write(tmp_path, synthetic.line, lambda t: 0.5)
    for state in tmp_path.glob("checkpoint-*/trainer_state.json"):
        state.replace(tmp_path / "trainer_state.json")
    for state in tmp_path.glob("checkpoint-*/optimizer.pt"):
        state.unlink()
    traj = Trajectory.load(tmp_path)
    assert trainer_log.folder(traj) == tmp_path / f"checkpoint-{traj.steps[-1]}"


@pytest.mark.parametrize("e", [0.5, 0.95])
def test_without_rewards_nobody_is_sure_that_a_rate_is_too_low(e: float) -> None:
    """A ruined run glides on momentum as straight as that."""
    seen = measured(e, recommended="factors", horizon=50, skill=0.9)
    blind, sighted = (
        decide(seen),
        decide(dataclasses.replace(seen, reward=0.5, best=0.5, rise=0.0, first=0.4)),
    )
    assert blind.advice == sighted.advice
    assert (blind.confidence, sighted.confidence) == ("low", "high")
    assert "No rewards were found: a ruined run looks the same" in blind.answer
    assert "No rewards were found" not in sighted.answer


@pytest.mark.parametrize(
    ("group", "beta1"),
    [
        ({"betas": (0.8, 0.99)}, 0.8),
        ({"beta1": None, "decay_rate": -0.8}, 0.0),  # transformers' Adafactor
        ({"beta1": 0.7, "decay_rate": -0.8}, 0.7),
        ({"beta2_decay": -0.8}, 0.0),  # torch's
        ({"momentum": 0, "nesterov": False}, 0.0),  # SGD
        ({"momentum": 0.95, "nesterov": False}, 0.95),
        ({"momentum": 0.0, "alpha": 0.99, "centered": False}, 0.0),  # RMSprop
        ({"momentum": 0.95, "nesterov": True}, None),  # its updates are no plain sums of earlier ones
        ({"betas": None}, None),
        ({"momentum": "0.9"}, None),
    ],
)
def test_momentum_is_read_from_any_optimizer(
    saved: Trajectory, group: dict[str, object], beta1: float | None
) -> None:
    """Adam's .9 had been assumed of all but Adam, with the words that there is no optimizer.pt."""
    place = trainer_log.folder(saved)
    assert place is not None
    torch.save({"param_groups": [{"lr": 1e-4, **group}]}, place / "optimizer.pt")
    assert trainer_log.adam_beta1(saved) == beta1
    said, found = advise(saved).reasons[0], analyze(saved, workers=1)
    assert "no optimizer.pt" not in said
    assert ("does not say it" in said) == (beta1 is None) == (found.excess == {})
    assert found.beta1 == beta1


@pytest.mark.parametrize(
    ("betas", "kept", "beta1"),
    [
        ((0.9, 0.999), ("step", "exp_avg", "exp_avg_sq"), 0.9),  # torch's Adam
        ((0.9, 0.999), ("step", "exp_avg", "exp_inf"), 0.9),  # Adamax
        ((0.9, 0.999), ("state1", "absmax1", "state2", "absmax2"), 0.9),  # bitsandbytes' Adam
        ((0.9, 0.99), ("exp_avg",), None),  # Lion: betas[1] is what its momentum keeps
        ((0.9, 0.99), ("step", "state1"), None),  # bitsandbytes' Lion
        ((0.9, 0.99), ("state1", "qmap1", "absmax1"), None),  # the same of 8 bits
        ((0.9, 0.999, 0.9999), ("state1", "state2"), None),  # AdEMAMix: a second momentum
        ((0.9, 0.999), ("z", "exp_avg_sq"), None),  # schedule-free: the path is a running mean
    ],
)
def test_betas_that_are_not_adams_say_nothing_of_momentum(
    saved: Trajectory, betas: tuple[float, ...], kept: tuple[str, ...], beta1: float | None
) -> None:
    """Noise under Lion was called a path with a direction, with high confidence: its momentum keeps .99 a step."""
    place = trainer_log.folder(saved)
    assert place is not None
    state = {0: {name: torch.zeros(3) for name in kept}}
    torch.save({"state": state, "param_groups": [{"lr": 1e-4, "betas": betas}]}, place / "optimizer.pt")
    assert trainer_log.adam_beta1(saved) == beta1
    assert features(saved).beta1_unsaid == (beta1 is None)
    assert (analyze(saved, workers=1).excess == {}) == (beta1 is None)


def test_a_run_whose_momentum_nobody_knows_is_not_judged_by_adams(tmp_path: Path) -> None:
    """White noise: turning back by what .9 would have carried on, and no further without momentum."""
    synthetic.write(tmp_path, synthetic.walk(0.0), synthetic.noisy(lambda t: 0.5))
    traj = Trajectory.load(tmp_path)
    place = trainer_log.folder(traj)
    assert place is not None
    told = {}
    for name, group in {"none": {"momentum": 0}, "unsaid": {"momentum": 0.9, "nesterov": True}}.items():
        torch.save({"param_groups": [group]}, place / "optimizer.pt")
        told[name] = decide(
            dataclasses.replace(
                features(traj), windows=tuple(map(white, (10, 20, 50), 3 * [name == "unsaid"])), reward=None
            )
        )
    assert told["none"].advice != "lower_lr"
    assert told["unsaid"].withheld
    assert told["unsaid"].factor is None
    assert "does not say how much of one update the next carries on" in told["unsaid"].answer
    assert "--beta1" in next_step(told["unsaid"], tmp_path, traj).command


def test_a_memory_longer_than_adams_may_explain_all_direction(tmp_path: Path) -> None:
    """Pure noise under Lion (betas .9, .99), 300 steps of a tiny model: cosines of .64, where Adam's would be .12."""
    synthetic.write(tmp_path, synthetic.walk(0.0), synthetic.noisy(lambda t: 0.5))
    seen = features(Trajectory.load(tmp_path))
    windows = tuple(
        PersistenceWindow(steps, c, c0, excess(c, c0))
        for steps, c, c0 in ((10, 0.64, 0.53), (20, 0.67, 0.31), (50, 0.64, 0.12))
    )
    of_adam = decide(dataclasses.replace(seen, windows=windows))
    unsaid = decide(dataclasses.replace(seen, windows=windows, beta1_known=False, beta1_unsaid=True))
    assert (of_adam.advice, of_adam.withheld) == ("raise_lr", False)
    assert (unsaid.advice, unsaid.factor, unsaid.withheld) == ("continue", None, True)


def white(steps: int, taken_for_adam: bool) -> PersistenceWindow:
    """A window of noise without momentum."""
    c0 = adam_persistence(2) if taken_for_adam else 0.0
    return PersistenceWindow(steps, 0.0, c0, excess(0.0, c0))


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"log_history": 3}', b"\xff\xfe"])
def test_broken_side_files_are_as_if_absent(saved: Trajectory, broken: bytes) -> None:
    place = trainer_log.folder(saved)
    assert place is not None
    (place / "trainer_state.json").write_bytes(broken)
    (place / "optimizer.pt").write_bytes(broken)
    seen = features(saved)
    assert seen.reward is None
    assert (seen.beta1, seen.beta1_known) == (0.9, False)


@pytest.mark.parametrize(("until", "rate", "steady"), [(40, 1e-5, True), (120, 1e-4, False)])
def test_after_a_resume_the_rate_is_that_of_the_windows_judged(
    until: int, rate: float, steady: bool, tmp_path: Path
) -> None:
    """A factor is one of the rate that left these checkpoints, not of one that the run had before."""
    rates = [{"step": t, "learning_rate": 1e-4 if t <= until else 1e-5} for t in range(1, 161)]
    synthetic.write(
        tmp_path, synthetic.line, synthetic.noisy(lambda t: 0.5), logged_rates=rates, initial_lr=1e-4
    )
    traj = Trajectory.load(tmp_path)
    advice = advise(traj)
    assert (advice.features.rate, advice.features.steady) == (rate, steady)
    what = next_step(advice, tmp_path, traj).what
    assert ("raised to 3e-5 or more (it was 1e-5)" in what) == steady
    assert ("(it was 1e-4 at its highest)" in what) != steady


def straight_on(per_step: float, dtype: torch.dtype) -> Trajectory:
    """A straight run that goes on from an adapter whose weights are far larger than its steps."""
    g = torch.Generator().manual_seed(3)
    a, b, drift = (torch.randn(size, generator=g) for size in ((4, 64), (64, 4), (64, 4)))
    factors = [
        {"w": ((a / 8).to(dtype), (0.03 * b + t * per_step * drift).to(dtype))} for t in range(0, 301, 10)
    ]
    return Trajectory.from_factors(range(0, 301, 10), factors)


def test_what_rounding_hides_is_not_advised_on() -> None:
    """Rounding turns back from checkpoint to checkpoint, so a rate far too low looked like one far too high."""
    assert advise(straight_on(1e-6, torch.float32)).regime == "signal"
    with pytest.raises(
        TooShort, match=r"^stored in bfloat16, whose rounding is .* times the last window: save in"
    ):
        advise(straight_on(1e-6, torch.bfloat16))


def test_windows_that_rounding_spoils_are_left_out() -> None:
    wide, narrow = (features(straight_on(2.5e-5, dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert [w.steps for w in wide.windows] == [10, 20, 50]
    assert [w.steps for w in narrow.windows] == [50]
    assert narrow.excess == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("path", [synthetic.line, synthetic.walk(0.0)])
@pytest.mark.parametrize("best", [0.0, 1.0, -1.0])
def test_where_all_rewards_are_the_same_nothing_is_said_of_the_rate(
    path: synthetic.Path, best: float, tmp_path: Path
) -> None:
    """A run that earns 1 throughout was told to raise its rate, or to lower it, and so was one that earns nothing."""
    synthetic.write(tmp_path, path, lambda t: best)
    traj = Trajectory.load(tmp_path)
    advice = advise(traj)
    assert (advice.factor, advice.recommended, advice.withheld) == (None, "none", True)
    assert "Every reward of the last three windows is" in advice.answer
    assert ("nothing is left to gain" in advice.answer) == (best == 1.0)
    assert advice.judged == advice.regime
    assert "reward function" in next_step(advice, tmp_path, traj).what


def test_a_run_that_learned_all_there_is_is_not_told_to_go_faster(tmp_path: Path) -> None:
    """Without differences there is no gradient, and momentum glides on: the path is straight."""
    synthetic.write(tmp_path, synthetic.line, lambda t: min(1.0, 0.4 + 0.008 * t))
    assert advise(tmp_path).factor is None


def test_a_run_at_a_standstill_without_differences_is_told_why(tmp_path: Path) -> None:
    synthetic.write(tmp_path, lambda t, p, q, noise: p, lambda t: 0.0)
    with pytest.raises(
        TooShort, match=r"nothing to advise on\. Every reward logged lately is 0: completions that all"
    ):
        advise(tmp_path)


@pytest.mark.parametrize("e", [0.0, 0.9])
def test_a_run_with_nothing_left_to_gain_needs_no_other_rate(e: float) -> None:
    """A rate pays where it ends more than .02 higher: there is no room for that."""
    seen = measured(
        e, reward=0.99, best=0.99, rise=0.0, first=0.985, recommended="secant", horizon=50, skill=0.9
    )
    advice = decide(seen)
    assert (advice.advice, advice.factor) == ("average", None)
    assert "0.99 of at most 1" in advice.answer


def test_a_reward_that_fell_to_where_all_are_alike_is_lost_in_any_unit() -> None:
    lost = measured(0.9, reward=-1.0, best=0.2, rise=0.0, first=0.1, lowest=-1.0, same=-1.0)
    advice = decide(lost)
    assert (advice.advice, advice.factor, advice.starts_over) == ("lower_lr", 0.1, True)
    assert decide(dataclasses.replace(lost, same=None)).factor == pytest.approx(1 / 3)


def test_a_reward_that_comes_back_is_not_lost() -> None:
    """Harder prompts bring it down too, and then the run goes on learning."""
    back = measured(0.5, reward=0.2, best=0.9, rise=0.1, first=0.3, fall_by_chance=0.05, rise_by_chance=0.04)
    advice, lost = decide(back), decide(dataclasses.replace(back, rise=0.0))
    assert (advice.advice, advice.starts_over, lost.starts_over) == ("lower_lr", False, True)
    assert "rises again (+0.1" in advice.answer
    for told in (advice, lost):
        assert "Prompts that became harder" in told.answer
        assert "there is no gradient" not in told.answer


@pytest.mark.parametrize(
    ("more", "words"),
    [({"shift": -3.0}, "a reward that is no share of 1"), ({"functions": 2}, "a sum of 2 rewards")],
)
def test_nobody_is_sure_of_a_rate_where_the_best_reward_is_unknown(
    more: dict[str, float], words: str, tmp_path: Path
) -> None:
    """A straight path whose reward rises: too low a rate if much is left to gain, and a run that learns if not."""
    parts = [
        {
            "step": t,
            "loss": 0.0,
            "reward": more.get("shift", 0.0) + synthetic.noisy(lambda t: 0.2 + t / 400)(t),
        }
        | {f"rewards/{n}/mean": 0.1 for n in range(int(more.get("functions", 1)))}
        for t in range(1, 161)
    ]
    synthetic.write(tmp_path, synthetic.line, lambda t: 0.5, more=parts)
    advice = advise(tmp_path)
    assert (advice.advice, advice.confidence) == ("leap", "low")
    assert (
        f"How much is left to gain of {words} is not known: this holds where more than 0.0" in advice.answer
    )
    assert advice.features.closing == 0.0


def test_what_must_be_left_to_gain_is_where_the_rule_turns() -> None:
    """With just so much left, the same rewards as shares of 1 are told to go on; with more, to go faster."""
    unknown = measured(0.5, reward=3.0, best=3.0, rise=0.3, first=1.0)
    left = float(decide(unknown).answer.partition("this holds where more than ")[2].split()[0])
    for more, action in ((-0.02, "continue"), (0.02, "raise_lr")):
        shares = measured(0.5, reward=1.0 - left - more, best=1.0 - left - more, rise=0.3, first=0.1)
        assert decide(shares).advice == action


def test_a_flat_reward_of_unknown_best_that_never_rose_may_be_one_that_shakes() -> None:
    began = measured(0.0, reward=-0.5, best=-0.5, rise=0.0, first=-0.5, lowest=-0.7)
    assert (decide(began).advice, decide(began).confidence) == ("average", "low")
    assert "shakes without learning" in decide(began).answer
    learned = dataclasses.replace(began, first=-2.0)
    assert "shakes" not in decide(learned).answer


def test_a_reward_too_noisy_to_show_a_rise_is_not_said_to_be_flat() -> None:
    seen = measured(
        0.0, reward=0.45, best=0.45, rise=0.03, first=0.3, fall_by_chance=0.2, rise_by_chance=0.13
    )
    blurred, clear = (
        decide(seen),
        decide(dataclasses.replace(seen, fall_by_chance=0.05, rise_by_chance=0.035)),
    )
    assert (blurred.advice, blurred.confidence) == ("average", "low")
    assert "is flat" not in blurred.answer
    assert (clear.advice, clear.confidence) == ("average", "high")
    assert "is flat" in clear.answer


def test_a_path_with_hardly_a_direction_is_not_said_to_have_one() -> None:
    advice = decide(measured(0.22))
    assert (advice.regime, advice.advice) == ("noise", "raise_lr")
    assert "would use that direction" not in advice.answer


def test_the_json_has_no_regime_where_the_text_says_that_it_is_unknown() -> None:
    turning = tuple(PersistenceWindow(steps, 0.3, 0.5, -0.4) for steps in (10, 20, 50))
    unknown = decide(measured(0.0, windows=turning, updates=None)).as_dict()
    known = decide(measured(0.0, windows=turning)).as_dict()
    assert (unknown["regime"], unknown["withheld"]) == (None, True)
    assert (known["regime"], known["withheld"]) == ("noise", False)


def test_alpharl_finds_its_accuracies(saved: Trajectory) -> None:
    assert leap(saved, "alpharl", horizon=20).leap_state()


def test_alpharl_without_accuracies_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"keep trainer_state.json beside them, or give accuracy"):
        leap(synthetic.run(synthetic.line), "alpharl", horizon=20)


def test_a_notebook_shows_the_answer_and_not_the_fields() -> None:
    advice = decide(measured(0.95, recommended="factors", horizon=50, skill=0.9))
    assert "Test a leap with factors, 50 steps ahead" in advice._repr_html_()
    assert len(repr(advice)) < 200
    assert "features" not in repr(advice)
