"""Leaps in place in real verl: Ray, FSDP2 over gloo, vLLM, GRPO with LoRA on the tiny model, on the CPU.

Skipped where verl's stack is not installed. A start of verl takes a minute on two free cores, so that one run answers
several questions.
"""

from __future__ import annotations

import importlib.util
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


def is_the_leap(change: dict, alpha: float) -> None:
    """To the bit, on this worker's shards, with the moments untouched."""
    assert change["alpha"] == alpha
    names = list(change["after"])
    assert names
    for name in names:
        start, stop = change["start"][name], change["stop"][name]
        assert torch.equal(change["before"][name], stop), name
        assert torch.equal(change["after"][name], torch.lerp(start, stop, 1.0 + alpha)), name
    assert any(not torch.equal(change["before"][n], change["after"][n]) for n in names)
    before, after = change["moments"]
    assert len(before) == 3 * len(names)  # two moments and a count of steps each
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_forced_leap_on_two_workers(base, tmp_path):
    """(a) and (d): each worker's shards are the leap to the bit; the rollout servers follow; training goes on."""
    words = verl.words(base, tmp_path, steps=5, gpus=2)
    verl.run(
        [*words, *LEAPING, "+trainer.v1.nextrl.leaps={3: 1.5}"], tmp_path / "log.txt", **watched(tmp_path)
    )
    ranks = [changes(tmp_path, rank) for rank in (0, 1)]
    for found in ranks:
        is_the_leap(found[0], 1.5)
        # The check of the delivery wrote the weights before the leap once more, and put those after it back.
        assert all(torch.equal(t, found[2]["after"][n]) for n, t in found[1]["before"].items())
    parts = [sum(t.numel() for t in found[0]["after"].values()) for found in ranks]
    assert sum(parts) == ranks[0][0]["numel"]
    assert min(parts) > 0
    [record] = verl.decisions(tmp_path)
    assert (record["step"], record["alpha"], record["method"]) == (3, 1.5, "secant")
    logged = verl.metrics(tmp_path)
    assert sorted(logged) == [1, 2, 3, 4, 5]
    assert logged[3]["leap/alpha"] == 1.5
    # The rollouts of step 4 fit the weights after the leap, and not those before it.
    assert logged[4]["leap/rollout_off"] < 0.5 * logged[4]["leap/rollout_off_before"]
    assert logged[4]["training/rollout_probs_diff_mean"] < 0.02


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


def test_a_deaf_rollout_is_caught(base, tmp_path):
    """(e): rollout servers that take weights no more stop the run at the first batch after the leap."""
    words = verl.words(base, tmp_path, steps=5)
    started = verl.start(
        [*words, *LEAPING, "+trainer.v1.nextrl.leaps={2: 4.0}"],
        tmp_path / "log.txt",
        **watched(tmp_path, VERL_DEAF="1"),
    )
    assert started.wait(2400) != 0
    assert (
        "StaleRollouts: the rollout servers sampled with the weights before"
        in (tmp_path / "log.txt").read_text()
    )
    assert max(verl.metrics(tmp_path)) == 2


def test_a_run_that_does_not_ask_is_verls_own(base, tmp_path):
    """(f): the plugin is installed, and no process imports more of it than the lines that register its name.

    Two runs cannot be compared number by number: verl's rollouts differ from run to run, with one seed.
    """
    loaded = {"VERL_USE_EXTERNAL_MODULES": "verl_loaded", "VERL_LOADED": str(tmp_path / "loaded")}
    words = [*verl.words(base, tmp_path, steps=2), "trainer.save_freq=2"]
    verl.run(words, tmp_path / "log.txt", **{**watched(tmp_path), **loaded})
    found = {name for path in (tmp_path / "loaded").iterdir() for name in path.read_text().split()}
    ours = {name for name in found if name.startswith("nextrl.engines.")}
    assert ours == {"nextrl.engines.verl", "nextrl.engines.verl.plugin"}
    assert not {
        name for name in found if name.startswith(("nextrl.judge", "nextrl.leaps", "nextrl.trajectory"))
    }
    logged = verl.metrics(tmp_path)
    assert sorted(logged) == [1, 2]
    assert not [name for name in logged[2] if "nextrl" in name or name.startswith("leap/")]
    assert not (tmp_path / "nextrl_decisions.jsonl").exists()
    assert (tmp_path / "global_step_2" / "actor").is_dir()
    assert not (tmp_path / "global_step_2" / "nextrl").exists()
