"""TRL on two processes that hold an adapter in pieces: FSDP2, and DeepSpeed's ZeRO-2 and ZeRO-3, over gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from launching import launch
from nextrl.engines.history import AdapterHistory
from nextrl.engines.live_adapter import LiveAdapter, leap_into
from nextrl.engines.live_weights import State
from nextrl.leaps.leap import leap
from trl_runs import fresh_model

SCRIPT = Path(__file__).with_name("two_sharded.py")
FLAGS = {
    "FSDP2": (
        "--use_fsdp",
        "--fsdp_version=2",
        "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP",
        "--fsdp_transformer_layer_cls_to_wrap=LlamaDecoderLayer",
    ),
    "ZeRO-2": ("--use_deepspeed", "--zero_stage=2"),
    "ZeRO-3": ("--use_deepspeed", "--zero_stage=3"),
}
RATE, TOO_HIGH = 1e-3, 0.3  # of the named method's run, and of auto's
Both = list[dict[str, Any]]


@pytest.fixture(scope="module", params=list(FLAGS))
def sharded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Both]:
    """(how the parameters lie, what each process saw)."""
    out = tmp_path_factory.mktemp(request.param)
    launch(SCRIPT, str(out), flags=FLAGS[request.param], timeout=900)
    return request.param, [torch.load(out / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]


def apart(a: State, b: State) -> float:
    """The largest difference of an entry of two adapters."""
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def whole(kind: str) -> Callable[..., torch.Tensor]:
    """Makes one parameter, of a known shape, of what two processes hold of it."""
    if kind == "ZeRO-2":
        return lambda shape, first, second: first
    if kind == "FSDP2":
        return lambda shape, first, second: torch.cat([first, second])
    return lambda shape, first, second: torch.cat([first, second])[: shape.numel()].view(shape)


@pytest.mark.parametrize("run", ["named", "auto"])
def test_two_processes_hold_one_adapter_in_pieces(sharded: tuple[str, Both], run: str) -> None:
    kind, (first, second) = sharded[0], (seen[run] for seen in sharded[1])
    assert first["kinds"] == second["kinds"] == {kind}
    for a, b in zip(first["after"], second["after"], strict=True):
        assert apart(a, b) == 0.0
    # What a forward pass computes with is what was read, and what was written at a leap.
    for read, a, b in zip(first["after"], first["shares"], second["shares"], strict=True):
        assert apart(read, {n: whole(kind)(read[n].shape, a[n], b[n]) for n in read}) == 0.0
        held = sum(share[n].numel() for share in (a, b) for n in share)
        full = sum(t.numel() for t in read.values())
        assert held == full * (2 if kind == "ZeRO-2" else 1)


def test_a_named_leap_is_the_one_of_the_path_and_training_goes_on_from_it(sharded: tuple[str, Both]) -> None:
    seen = sharded[1][0]["named"]
    assert [d["step"] for d in seen["decisions"] if d["alpha"]] == [2, 4]
    begins, ends, after = seen["begins"], seen["ends"], seen["after"]
    for start, stop in ((0, 1), (2, 3)):
        expected = leapt(begins[start], ends[stop])
        assert apart(expected, ends[stop]) > 3 * RATE
        assert apart(after[stop], expected) < 1e-6
        # The optimizer steps from there, by Adam's one rate an entry, and not from a copy of its own.
        assert apart(begins[stop + 1], after[stop]) == 0.0
        assert 0.5 * RATE < apart(ends[stop + 1], after[stop]) < 1.5 * RATE


def leapt(start: State, stop: State) -> State:
    """The same leap on one process, from what two saw: `linear` over two steps, two more ahead, three times over."""
    adapter, history = LiveAdapter(fresh_model()), AdapterHistory()
    history.begin(0, start)
    history.add(2, stop, 0.0)
    return leap_into(adapter, leap(history.trajectory(adapter), "linear", 2), 3.0)


def test_auto_takes_a_step_back_and_steps_shorter(sharded: tuple[str, Both]) -> None:
    seen = sharded[1][0]["auto"]
    (back, *_) = (d for d in seen["decisions"] if d["back"] == "step")
    taken = back["step"] - 1
    assert apart(seen["ends"][taken], seen["begins"][taken]) > 0.5 * TOO_HIGH
    assert apart(seen["after"][taken], seen["begins"][taken]) == 0.0
    rate = back["learning_rate"]
    assert rate <= 0.5 * TOO_HIGH
    # The optimizer that DeepSpeed made of ours has taken the rate over, too.
    assert 0.5 * rate < apart(seen["ends"][taken + 1], seen["begins"][taken + 1]) < 1.5 * rate
