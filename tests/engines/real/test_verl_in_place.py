"""Leaps in place in real verl: Ray, FSDP2 and FSDP1 over gloo, vLLM, GRPO with LoRA on the tiny model, on the CPU.

Skipped where verl's stack is not installed. A start of verl takes a minute on two free cores, so that one run answers
several questions: both engines are in the runs below, two workers and one.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import time
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
MISSING = [
    name for name in ("ray", "vllm", "verl", "transfer_queue") if importlib.util.find_spec(name) is None
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"real engines: {MISSING} not installed")
if not MISSING:
    import verl_command as verl

    from nextrl.checkpoints.tensorfile import read_tensors
    from nextrl.engines.verl.adapters import read_shards

LEAPING = ("trainer.v1.trainer_mode=nextrl",)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verl")
    verl.prepare(folder)
    return folder


def watched(out: Path, **more: str) -> dict[str, str]:
    """The environment in which every worker writes down what it does."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return {
        "VERL_USE_EXTERNAL_MODULES": "verl_witness",
        "VERL_WITNESS": str(out / "witness"),
        "PYTHONPATH": path,
        **more,
    }


def changes(out: Path, rank: int) -> list[dict]:
    """What one worker did, in order."""
    paths = (out / "witness").glob(f"put-{rank}-*.pt")
    return [torch.load(p) for p in sorted(paths, key=lambda p: int(p.stem.rsplit("-", 1)[1]))]


def is_exact(change: dict) -> None:
    """To the bit the candidate that was asked for, on this worker's shards, with the moments untouched."""
    names = list(change["after"])
    assert names
    for name in names:
        made = torch.lerp(change["start"][name], change["stop"][name], 1.0 + change["alpha"])
        assert torch.equal(change["after"][name], made), name
    assert any(not torch.equal(change["before"][n], change["after"][n]) for n in names)
    before, after = change["moments"]
    assert len(before) == 3 * len(names)  # two moments and a count of steps each
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def is_the_leap(change: dict, alpha: float) -> None:
    """An exact candidate, made from where the weights were."""
    assert change["alpha"] == alpha
    assert all(torch.equal(change["before"][name], t) for name, t in change["stop"].items())
    is_exact(change)


def test_forced_leaps_on_two_workers_and_a_deaf_rollout(base, tmp_path):
    """(a): each worker's shards are the leap to the bit; the rollout servers follow; training goes on. Under FSDP1.

    (e): from the second leap on the rollout servers take no more weights, which stops the run at the next batch.
    """
    words = verl.words(base, tmp_path, steps=6, gpus=2, strategy="fsdp")
    started = verl.start(
        [*words, *LEAPING, "+trainer.v1.nextrl.leaps={2: 1.5, 4: 4.0}"],
        tmp_path / "log.txt",
        **watched(tmp_path, VERL_DEAF="4"),
    )
    assert started.wait(2400) != 0
    log = (tmp_path / "log.txt").read_text(errors="replace")
    assert "StaleRollouts: the rollout servers sampled with the weights before" in log, log[-6000:]
    ranks = [changes(tmp_path, rank) for rank in (0, 1)]
    for found in ranks:
        is_the_leap(found[0], 1.5)
        # The check of the delivery wrote the weights before the leap once more, and put those after it back.
        assert all(torch.equal(t, found[2]["after"][n]) for n, t in found[1]["before"].items())
        is_the_leap(found[3], 4.0)
    parts = [sum(t.numel() for t in found[0]["after"].values()) for found in ranks]
    assert min(parts) > 0.3 * sum(parts)
    decided = verl.decisions(tmp_path)
    assert [(d["step"], d["alpha"], d["method"]) for d in decided] == [(2, 1.5, "secant"), (4, 4.0, "secant")]
    logged = verl.metrics(tmp_path)
    assert sorted(logged) == [1, 2, 3, 4]
    assert logged[2]["leap/alpha"] == 1.5
    # The rollouts of step 3 fit the weights after the leap, and not those before it.
    assert logged[3]["leap/rollout_off"] < 0.5 * logged[3]["leap/rollout_off_before"]
    assert logged[3]["training/rollout_probs_diff_mean"] < 0.02


def test_a_forced_leap_on_replicas(base, tmp_path):
    """(a) under HSDP: both workers hold the whole adapter, and stay equal; its way is not counted twice.

    With KL in the reward and in the loss, another loss, and DAPO's filter groups, which are none of nextrl's business.
    """
    words = [
        *verl.words(base, tmp_path, steps=3, gpus=2), *LEAPING, "+trainer.v1.nextrl.leaps={2: 1.5}",
        "actor_rollout_ref.actor.fsdp_config.fsdp_size=1", "algorithm.use_kl_in_reward=True",
        "actor_rollout_ref.actor.use_kl_loss=True", "actor_rollout_ref.actor.policy_loss.loss_mode=gspo",
        "algorithm.filter_groups.enable=True",
    ]  # fmt: skip
    verl.run(words, tmp_path / "log.txt", **watched(tmp_path))
    [leap, *after], others = (changes(tmp_path, rank) for rank in (0, 1))
    for change in (leap, others[0]):
        is_the_leap(change, 1.5)
    assert len(after) == len(others) - 1 == 2  # the check of the delivery: there and back
    for one, other in zip((leap, *after), others, strict=True):
        assert all(torch.equal(t, other["after"][name]) for name, t in one["after"].items())
        assert sum(t.numel() for t in one["after"].values()) == one["numel"]
    logged = verl.metrics(tmp_path)
    assert logged[3]["actor/kl_loss"] > 0.0
    way = sum(
        float((t.double() - leap["start"][n].double()).square().sum()) for n, t in leap["after"].items()
    )
    assert logged[2]["leap/moved"] == pytest.approx(way**0.5, rel=1e-6)
    assert logged[3]["leap/rollout_off"] < 0.5 * logged[3]["leap/rollout_off_before"]


def test_auto_raises_a_cautious_rate_and_survives_a_kill(base, tmp_path):
    """(b) and (c): from a rate far too low the reward rises; killed and started again, the run goes on as it was."""
    words = [
        *verl.words(base, tmp_path, steps=12), *LEAPING, "+trainer.v1.nextrl.every=3",
        "actor_rollout_ref.actor.optim.lr=1e-6", "trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=2",
        # Rewards of 32 completions scatter by .08, about as much as twelve steps gain; of 128 by half of that.
        "data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=16", "actor_rollout_ref.rollout.n=8",
    ]  # fmt: skip
    log, kill_at = tmp_path / "log.txt", random.randint(2, 8)
    running = verl.start(words, log)
    try:
        deadline = time.monotonic() + 2400
        while running.poll() is None and time.monotonic() < deadline:
            if (tmp_path / "metrics.jsonl").is_file() and max(verl.metrics(tmp_path), default=0) >= kill_at:
                break
            time.sleep(0.2)
        assert running.poll() is None, log.read_text(errors="replace")[-6000:]
        time.sleep(random.uniform(0.0, 3.0))
    finally:
        verl.kill(running)
    saved = int((tmp_path / "latest_checkpointed_iteration.txt").read_text())
    assert (tmp_path / f"global_step_{saved}" / "nextrl" / "state.json").is_file()
    first = [d for d in verl.decisions(tmp_path) if d["step"] <= saved]
    before = verl.metrics(tmp_path)
    verl.run(words, log)
    logged = {**{k: v for k, v in before.items() if k <= saved}, **verl.metrics(tmp_path)}
    decided = verl.decisions(tmp_path)
    assert sorted(logged) == list(range(1, 13)), (kill_at, saved)
    assert decided[: len(first)] == first
    steps = [d["step"] for d in decided]
    assert steps == sorted(set(steps))
    assert max(d["rate_factor"] for d in decided) > 10.0
    assert max(m["actor/lr"] for m in logged.values()) > 1e-4
    rewards = [logged[step]["critic/rewards/mean"] for step in sorted(logged)]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:3]) / 3 + 0.1, rewards


@pytest.fixture(scope="module")
def one_and_two(base, tmp_path_factory):
    """One run of `auto`, on one worker and on two, in which the same completions are sampled by the same weights.

    Fixed are the order of the data, the adapter to start from, and the random numbers of each completion, which belong
    to its prompt, its place in the group and the step (`verl_command.seeded`). Not fixed are the order of the rows and
    which worker has which.
    """
    outs = []
    for gpus in (1, 2):
        out = tmp_path_factory.mktemp(f"workers-{gpus}")
        words = [
            *verl.words(base, out, steps=6, gpus=gpus), *verl.seeded(base, out / "loop"), *LEAPING,
            "+trainer.v1.nextrl.every=2", "actor_rollout_ref.actor.optim.lr=1e-4", "trainer.save_freq=6",
        ]  # fmt: skip
        verl.run(words, out / "log.txt", **watched(out))
        outs.append(out)
    return outs


def test_two_workers_decide_as_one(one_and_two):
    """(d): the same decisions at the same steps, and the figures that they were made from."""
    one, two = (verl.decisions(out) for out in one_and_two)
    kinds = ("step", "method", "alpha", "back")
    assert [[d[key] for key in kinds] for d in one] == [[d[key] for key in kinds] for d in two]
    assert any(d["rate_factor"] != 1.0 for d in one)
    for ours, theirs in zip(one, two, strict=True):
        for key in ("rate_factor", "learning_rate", "divergence", "reward"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-4), (ours["step"], key)
    rewards = [[m["critic/rewards/mean"] for m in verl.metrics(out).values()] for out in one_and_two]
    assert rewards[0] == pytest.approx(rewards[1], rel=1e-6)


def test_two_workers_train_as_one(one_and_two):
    """(d): the adapters at the end differ by less than a ten-thousandth of B, which began at zero."""
    one, two = (read_shards(out / "global_step_6" / "actor") for out in one_and_two)
    assert one.keys() == two.keys()
    away = sum(float((two[name] - t).double().square().sum()) for name, t in one.items()) ** 0.5
    way = sum(float(t.double().square().sum()) for name, t in one.items() if "lora_B" in name) ** 0.5
    assert way > 0.0
    assert away < 1e-4 * way


def test_candidates_are_exact_on_two_workers(one_and_two):
    """(a) under FSDP2: what is judged is the candidate to the bit, and what was there before is put back."""
    shares = []
    for rank in (0, 1):
        found = changes(one_and_two[1], rank)
        looks = [(look, back) for look, back in itertools.pairwise(found) if look["alpha"]]
        assert {look["alpha"] for look, _ in looks} >= {-1.0, 1.0}
        for look, back in looks:
            is_exact(look)
            assert all(torch.equal(t, look["before"][name]) for name, t in back["after"].items())
        shares.append(sum(t.numel() for t in found[0]["after"].values()))
    assert min(shares) > 0.3 * sum(shares)


def test_the_way_of_each_window_is_in_verls_log(one_and_two):
    """How far a window led and how straight on, from sums over the workers' shards."""
    one, two = (verl.metrics(out) for out in one_and_two)
    for name in ("leap/moved", "leap/persistence"):
        ours = {step: m[name] for step, m in one.items() if name in m}
        theirs = {step: m[name] for step, m in two.items() if name in m}
        assert ours, name
        assert theirs == pytest.approx(ours, rel=1e-4), name


def test_auto_on_all_weights(base, tmp_path):
    """Without an adapter: flat shards of whole layers, a rate far too low, exact candidates, delivered."""
    words = [
        *verl.words(base, tmp_path, steps=6, gpus=2, strategy="fsdp"), *LEAPING, "+trainer.v1.nextrl.every=2",
        "actor_rollout_ref.model.lora_rank=0", "actor_rollout_ref.actor.optim.lr=1e-7", "trainer.save_freq=6",
    ]  # fmt: skip
    verl.run(words, tmp_path / "log.txt", **watched(tmp_path))
    found = [changes(tmp_path, rank) for rank in (0, 1)]
    for ours in found:
        assert not any("lora_" in name for name in ours[0]["after"])
        looks = [(look, back) for look, back in itertools.pairwise(ours) if look["alpha"]]
        assert looks
        for look, back in looks:
            is_exact(look)
            assert all(torch.equal(t, look["before"][name]) for name, t in back["after"].items())
    shares = [sum(t.numel() for t in ours[0]["after"].values()) for ours in found]
    whole = sum(t.numel() for t in read_tensors(base / "base" / "model.safetensors").values())
    # FSDP1 pads a flat tensor to even shards.
    assert whole <= sum(shares) < whole + 2 * len(found[0][0]["after"])
    assert max(d["rate_factor"] for d in verl.decisions(tmp_path)) > 10.0
    logged = verl.metrics(tmp_path)
    assert max(m["actor/lr"] for m in logged.values()) > 1e-6
    assert max(m["training/rollout_probs_diff_mean"] for m in logged.values()) < 0.02
    states = list((tmp_path / "global_step_6" / "nextrl").glob("shards-*"))
    assert len(states) == 2


def test_a_run_that_does_not_ask_is_verls_own(base, tmp_path):
    """(f): the plugin is installed, and what verl logs is, number by number, what it logs without it.

    Without: verl is told to load no plugin but that of the CPU, and no process has imported a module of nextrl. What is
    sampled is fixed by the weights (`verl_seeded`), and so is all that follows.
    """
    logged, imported = [], []
    for plugins in ("auto", "cpu"):
        out = tmp_path / plugins
        loaded = {"VERL_USE_EXTERNAL_MODULES": "verl_loaded", "VERL_LOADED": str(out / "loaded")}
        words = [*verl.words(base, out, steps=3), *verl.seeded(base, out / "loop"), "trainer.save_freq=3"]
        verl.run(words, out / "log.txt", **{**watched(out), **loaded}, VERL_USE_EXTERNAL_PLUGINS=plugins)
        imported.append({n for path in (out / "loaded").iterdir() for n in path.read_text().split()})
        logged.append(verl.metrics(out))
        assert not (out / "nextrl_decisions.jsonl").exists()
        assert (out / "global_step_3" / "actor").is_dir()
        assert not (out / "global_step_3" / "nextrl").exists()
    ours = {name for name in imported[0] if name.startswith("nextrl.engines.")}
    assert ours == {"nextrl.engines.verl", "nextrl.engines.verl.plugin"}
    assert not {n for n in imported[0] if n.startswith(("nextrl.judge", "nextrl.leaps", "nextrl.trajectory"))}
    assert not imported[1]
    figures = [{step: figures_of(m) for step, m in found.items()} for found in logged]
    assert sorted(figures[0]) == sorted(figures[1]) == [1, 2, 3]
    for step, with_plugin in figures[0].items():
        assert {"actor/pg_loss", "actor/grad_norm", "critic/rewards/mean"} <= with_plugin.keys()
        assert not [name for name in with_plugin if "nextrl" in name or name.startswith("leap/")]
        assert with_plugin == pytest.approx(figures[1][step], rel=1e-4, abs=1e-5), step
    assert figures[0][3]["actor/grad_norm"] != figures[0][1]["actor/grad_norm"]


def figures_of(metrics: dict) -> dict[str, float]:
    """What verl logs, but for seconds, memory and speed."""
    clocks = ("timing", "perf/", "actor/perf/")
    return {name: value for name, value in metrics.items() if not name.startswith(clocks)}
