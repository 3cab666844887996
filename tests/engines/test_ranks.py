"""Two processes under `accelerate launch` (gloo, CPU): one decision, one trajectory, one writer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import two_processes
from launching import TESTS, launch
from nextrl.engines import ranks as module
from nextrl.engines.live_weights import State
from nextrl.engines.ranks import Ranks
from nextrl.engines.settings import TrainSettings
from nextrl.engines.trl import trainer
from nextrl.errors import InputError
from nextrl.judge.paired_search import GroupedScore, Refused, grid_search


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, what each process saw)."""
    out = tmp_path_factory.mktemp("two")
    launch(TESTS / "two_processes.py", str(out))
    return out, [torch.load(out / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return two_processes.scripted_run(tmp_path_factory.mktemp("one"), 1)


def apart(a: State, b: State, start: State) -> float:
    """Distance of two adapters over the length of the way that the first has come."""
    away = sum(float((a[n] - b[n]).square().sum()) for n in a)
    return (away / sum(float((a[n] - start[n]).square().sum()) for n in a)) ** 0.5


def test_two_processes_are_one_with_gradient_accumulation(two: Any, one: Any) -> None:
    run = two[1][0]["scripted"]
    assert len(one["rewards"]) == two_processes.STEPS
    assert run["rewards"] == pytest.approx(one["rewards"], abs=1e-7)  # float32 means of the same completions
    assert run["scores"] == one["scores"]
    assert [(d["alpha"], d["learning_rate"]) for d in run["decisions"]] == [
        (d["alpha"], d["learning_rate"]) for d in one["decisions"]
    ]
    assert [d["alpha"] for d in one["decisions"]] == [2.0, -0.5, 0.0]
    for a, b in zip(run["adapters"], one["adapters"], strict=True):
        assert apart(a, b, one["before"]) < 1e-3
    # One group of five is scored twice to fill the second process's share, and is paid for.
    assert (run["completions"], one["completions"]) == (3 * 2 * 24, 3 * 2 * 20)


def test_what_a_kill_left_waiting_is_there_for_every_process_of_a_resumed_run(two: Any) -> None:
    """The second process reads a second later than the first, which begins to write."""
    for seen in two[1]:
        unbroken, resumed = seen["killed"]["ends"]
        assert all(torch.equal(unbroken[n], resumed[n]) for n in unbroken)
        assert seen["killed"]["decisions"][0] == seen["killed"]["decisions"][1]


@pytest.mark.parametrize("kind", ["scripted", "real", "whole"])
def test_adapters_are_equal_to_the_bit_after_every_step_and_leap(two: Any, kind: str) -> None:
    first, second = (seen[kind] for seen in two[1])
    assert len(first["adapters"]) >= 4
    for a, b in zip(first["adapters"], second["adapters"], strict=True):
        assert all(torch.equal(a[n], b[n]) for n in a)
    without_cost = [[{**d, "cost_completions": 0} for d in r["decisions"]] for r in (first, second)]
    assert without_cost[0] == without_cost[1]


def test_process_0_alone_decides_and_the_other_takes_its_memory(two: Any) -> None:
    first, second = (seen["real"] for seen in two[1])
    assert (first["asked"], second["asked"]) == (2, 0)
    assert first["controller"] == second["controller"]
    assert (two[1][0]["scripted"]["windows"], two[1][1]["scripted"]["windows"]) == (3, 0)


def test_process_0_alone_writes(two: Any) -> None:
    out = two[0]
    for name in ("nextrl_decisions.jsonl", "checkpoint-2/nextrl_state.json", "checkpoint-6"):
        assert (out / "scripted-0" / name).exists()
    # The trainer itself keeps every process's random state beside the checkpoint; nothing else is process 1's.
    written = [
        p.name for folder in ("scripted-1", "real-1") for p in (out / folder).rglob("*") if p.is_file()
    ]
    assert set(written) == {"rng_state_1.pth"}


def test_an_adapter_in_halves_is_read_whole_and_leaps_on_both(two: Any) -> None:
    first, second = (seen["fsdp2"] for seen in two[1])
    size = sum(t.numel() for t in first["before"].values())
    assert first["local"] + second["local"] == size
    assert 0 < first["local"] < size
    for seen in (first, second):
        assert all(torch.equal(seen["after"][n], 2.0 * t + 1.0) for n, t in first["before"].items())


def test_a_whole_run_is_written_once_and_goes_on_to_the_bit(two: Any) -> None:
    first, second = (seen["run"] for seen in two[1])
    names = {Path(name).name for name in first["listed"]}
    assert {"config.yaml", "result.json", "report.html", "rng_state_0.pth", "rng_state_1.pth"} <= names
    folders = {name.split("/")[0] for name in first["listed"] if "/" in name}
    assert folders == {"trajectory", "leaps", "final"}
    uninterrupted, resumed = first["ends"]
    assert all(torch.equal(uninterrupted[n], resumed[n]) for n in uninterrupted)
    result = first["result"]
    assert result["arms"]["run"]["steps"][-1] == 6
    assert [leap["alpha"] for leap in result["leaps"]["run"]] == [1.0]
    assert (second["result"], second["step"]) == (None, 6)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_step_s_completions_are_shared_out_or_refused(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings(prompts_per_step=4, completions_per_prompt=4)
    monkeypatch.setattr(trainer, "launched", lambda: pretend(0, processes))
    if processes == 3:
        with pytest.raises(InputError, match="16 completions per step cannot be shared by 3 processes"):
            trainer._share(settings)
    else:
        assert trainer._share(settings) == 16 // processes


def pretend(rank: int, world: int) -> Ranks:
    return Ranks(SimpleNamespace(process_index=rank, num_processes=world, wait_for_everyone=lambda: None))


def test_rows_are_shared_out_in_order_and_filled_up() -> None:
    rows = list(range(7))
    shares = [list(pretend(rank, 3).share(rows)) for rank in range(3)]
    assert shares == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]
    assert list(pretend(0, 1).share(rows)) == rows
    assert [list(pretend(rank, 4).share([5])) for rank in range(4)] == [[5]] * 4


def test_one_process_decides_by_itself_and_broadcasts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "broadcast_object_list", None)
    alone = pretend(0, 1)
    assert alone.once(lambda double: double(4), lambda x: 2 * x) == 8
    tensors = {"a": torch.ones(2)}
    assert alone.same(tensors) is tensors


def wire(monkeypatch: pytest.MonkeyPatch, sent: list[Any] | None = None) -> list[Any]:
    """Stand in for the broadcast: keep what a leader says, or hand a follower what was said."""
    said: list[Any] = []

    def broadcast(message: list[Any]) -> list[Any]:
        if sent is not None:
            return [sent.pop(0)]
        said.append(message[0])
        return message

    monkeypatch.setattr(module, "broadcast_object_list", broadcast)
    return said


def test_a_follower_calls_what_the_leader_called(monkeypatch: pytest.MonkeyPatch) -> None:
    said = wire(monkeypatch)
    decision = pretend(0, 2).once(lambda add, neg: neg(add(1, 2)), lambda a, b: a + b, lambda a: -a)
    assert decision == -3
    assert said == [(0, (1, 2)), (1, (3,)), ("done", -3)]
    calls: list[Any] = []

    def add(a: int, b: int) -> None:
        calls.append((a, b))
        raise Refused("not on this process either", 0)

    wire(monkeypatch, said)
    assert pretend(1, 2).once(lambda *_: None, add, calls.append) == -3
    assert calls == [(1, 2), 3]


def test_a_score_says_of_itself_on_two_processes_what_it_says_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    wire(monkeypatch)
    by_alpha = {0.0: [0.0] * 4, 2.0: [1.0, 1.0, 0.0, 0.0]}
    score = GroupedScore(lambda alpha, start, stop: torch.tensor(by_alpha[alpha][start:stop]), 2)

    def error(score: Any) -> float:
        return grid_search(score, [2.0], 4).error(2.0)

    assert pretend(0, 2).once(error, score) == pretend(0, 1).once(error, score) == pytest.approx(0.5)


def test_a_leader_that_fails_frees_its_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    said = wire(monkeypatch)

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pretend(0, 2).once(fail)
    wire(monkeypatch, said)
    with pytest.raises(RuntimeError, match="process 0 failed"):
        pretend(1, 2).once(fail)


def test_a_leader_whose_tool_fails_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are inside that tool: a broadcast would meet their gathering, and hide the error for ever."""
    said = wire(monkeypatch)

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pretend(0, 2).once(lambda tool: tool(), fail)
    assert said == [(0, ())]


def test_a_leader_that_does_not_handle_a_refusal_frees_its_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    said = wire(monkeypatch)

    def refuse() -> None:
        raise Refused("on all processes", 0)

    with pytest.raises(Refused):
        pretend(0, 2).once(lambda tool: tool(), refuse)
    assert said == [(0, ()), ("failed", None)]
