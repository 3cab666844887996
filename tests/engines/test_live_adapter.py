"""The live adapter: reading, writing, stepping along it, against PEFT's own delta weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

import lora_runs
from nextrl.engines import sharded
from nextrl.engines.live_adapter import LiveAdapter, leap_into
from nextrl.engines.live_weights import along, length_and_shrinking, shrinking_parts
from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from nextrl.trajectory.lowrank import cosine
from nextrl.trajectory.trajectory import Trajectory


def peft_model(**options: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(lora_runs.model(), lora_runs.lora(**options))


def drift(model: Any, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn(p.shape, generator=random)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"alpha_pattern": {"q_proj": 3}},
    ],
)
def test_displacement_is_the_difference_of_peft_s_delta_weights(options: dict[str, Any]) -> None:
    model = peft_model(**options)
    adapter = LiveAdapter(model)
    drift(model, 1)
    before, start = lora_runs.peft_deltas(model), adapter.read()
    drift(model, 2)
    after = lora_runs.peft_deltas(model)
    moved = lora_runs.displacement(adapter, start, adapter.read())
    assert len(moved) == len(before)
    for name, delta in zip(adapter.pairs, moved, strict=True):
        key = name.removeprefix("base_model.model.")
        expected = after[key] - before[key]
        dense = delta.dense()
        dense = dense if dense.shape == expected.shape else dense.mT
        torch.testing.assert_close(dense, expected, rtol=1e-5, atol=1e-6)


def test_read_copies_and_write_keeps_the_parameters_identity() -> None:
    model = peft_model()
    adapter = LiveAdapter(model)
    state = adapter.read()
    identities = [id(p) for p in model.parameters()]
    drift(model, 3)
    assert any(not torch.equal(state[n], p) for n, p in adapter.parameters.items())
    adapter.write(state)
    assert all(torch.equal(state[n], p) for n, p in adapter.parameters.items())
    assert [id(p) for p in model.parameters()] == identities
    assert all(p.requires_grad for p in adapter.parameters.values())


def test_a_bad_state_writes_nothing() -> None:
    model = peft_model()
    adapter = LiveAdapter(model)
    kept, names = adapter.read(), list(adapter.parameters)
    changed = {n: t + 1 for n, t in kept.items()}
    with pytest.raises(InputError, match="another adapter"):
        adapter.write({n: changed[n] for n in names[:-1]})
    with pytest.raises(InputError, match=r"\(1, 1\) in the leap"):
        adapter.write({**changed, names[-1]: torch.ones(1, 1)})
    assert all(torch.equal(kept[n], p) for n, p in adapter.parameters.items())


def test_only_the_active_adapter_is_seen() -> None:
    model = peft_model()
    model.add_adapter("ref", lora_runs.lora())
    adapter = LiveAdapter(model)
    assert not any("ref" in name for name in adapter.parameters)
    assert {id(p) for p in adapter.parameters.values()} == {
        id(p) for n, p in model.named_parameters() if ".default." in n
    }


def test_what_is_no_lora_is_refused() -> None:
    with pytest.raises(InputError, match="one active LoRA adapter"):
        LiveAdapter(lora_runs.model())
    from peft import IA3Config

    other = get_peft_model(
        lora_runs.model(),
        IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    )
    with pytest.raises(InputError, match="peft_type IA3; only LoRA adapters"):
        LiveAdapter(other)


def states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    random = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(3, 4, generator=random), "b": torch.randn(5, generator=random)}
    return start, {n: t + 0.01 * torch.randn(t.shape, generator=random) for n, t in start.items()}


def test_staying_put_and_undoing_are_exact_to_the_bit() -> None:
    start, stop = states()
    assert all(torch.equal(along(start, stop, 0.0)[n], stop[n]) for n in stop)
    assert all(torch.equal(along(start, stop, -1.0)[n], start[n]) for n in stop)


def test_a_leap_repeats_the_window() -> None:
    start, stop = states()
    for name, value in along(start, stop, 8.0).items():
        torch.testing.assert_close(value - stop[name], 8 * (stop[name] - start[name]), rtol=1e-4, atol=1e-6)


def test_a_window_that_began_in_another_dtype_can_be_gone_along() -> None:
    start = {"a": torch.tensor([1.0, 2.0])}
    there = along(start, {"a": torch.tensor([2.0, 2.0], dtype=torch.bfloat16)}, 1.0)["a"]
    assert (there.dtype, there.tolist()) == (torch.bfloat16, [3.0, 2.0])


def test_a_leap_fitted_on_files_lies_where_the_model_does(tmp_path: Path) -> None:
    lora_runs.write_run(tmp_path)
    traj = Trajectory.load(tmp_path)
    model = PeftModel.from_pretrained(lora_runs.model(), traj.checkpoints[-1].folder, is_trainable=True)
    adapter = LiveAdapter(model.to("meta"))  # no values, but a device that is not the files'
    state = leap_into(adapter, leap(traj, "secant", traj.spacing), 1.0)
    assert state.keys() >= adapter.parameters.keys()
    assert {state[name].device.type for name in adapter.parameters} == {"meta"}


def test_cosine_takes_all_modules_together() -> None:
    model = peft_model()
    adapter = LiveAdapter(model)
    drift(model, 1)
    a = adapter.read()
    drift(model, 2)
    b = adapter.read()
    drift(model, 3)
    c = adapter.read()
    first, second = lora_runs.displacement(adapter, a, b), lora_runs.displacement(adapter, b, c)
    x, y = (torch.cat([d.dense().flatten() for d in deltas]) for deltas in (first, second))
    assert cosine(first, second) == pytest.approx(float(torch.cosine_similarity(x, y, dim=0)), abs=1e-6)
    assert cosine(first, first) == pytest.approx(1.0)
    assert cosine(first, lora_runs.displacement(adapter, c, c)) == 0.0


def test_weight_decay_shrinks_and_a_gradient_does_not() -> None:
    def shrinking(start: Any, stop: Any) -> float:
        return length_and_shrinking(*shrinking_parts(start, stop))[1]

    start = {name: torch.randn_like(t) for name, t in LiveAdapter(peft_model()).read().items()}
    decayed = {name: t * (1 - 1e-4) for name, t in start.items()}
    moved = {name: t + 0.01 * torch.randn_like(t) for name, t in decayed.items()}
    assert shrinking(start, decayed) == pytest.approx(1.0, abs=1e-3)
    assert abs(shrinking(start, moved)) < 0.1
    assert shrinking(decayed, start) < -0.99
    assert math.isnan(shrinking(start, start))


@pytest.mark.parametrize("nth", [1, 2])
def test_an_interrupt_while_weights_are_written_leaves_none_half_written(
    monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    model = peft_model()
    adapter = LiveAdapter(model)
    start = adapter.read()
    drift(model, 1)
    own, plain, writes = adapter.read(), sharded.write, iter(range(1, 9))

    def write(parameters: Any, values: Any) -> None:
        if next(writes) == nth:
            plain(dict(list(parameters.items())[:2]), values)
            raise KeyboardInterrupt
        plain(parameters, values)

    monkeypatch.setattr(sharded, "write", write)
    with pytest.raises(KeyboardInterrupt), adapter.holding(start):
        pass
    assert all(torch.equal(t, own[name]) for name, t in adapter.read().items())
    assert not all(torch.equal(t, own[name]) for name, t in start.items())
