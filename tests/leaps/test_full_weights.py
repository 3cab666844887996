"""Leaps of runs that trained all weights: on differences of weights alone, and written so that PEFT loads all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from lora_runs import lora, model, peft_deltas, write_run
from nextrl.checkpoints.adapter import NOTE
from nextrl.checkpoints.dense import FullModel, adapter_settings
from nextrl.errors import InputError
from nextrl.extrapolators import get, names
from nextrl.judge.backtest import backtest
from nextrl.leaps.leap import leap
from nextrl.trajectory.memory_checkpoint import MemoryCheckpoint
from nextrl.trajectory.trajectory import Trajectory

STEPS = range(10, 61, 10)


def full_run(folder: Path, *, embeddings: bool = False, kind: str = "llama") -> Trajectory:
    """A run of rank 2 along a straight line, all matrices of the layers moving by `move` in 10 steps."""
    trained = model(kind)
    trained.save_pretrained(folder / "base")
    draws = torch.Generator().manual_seed(0)
    for step in STEPS:
        draws.manual_seed(0)
        for name, parameter in trained.named_parameters():
            if parameter.dim() == 2 and (embeddings or ("embed" not in name and "lm_head" not in name)):
                m, n = parameter.shape
                parameter.data += (
                    0.01 * torch.randn(m, 2, generator=draws) @ torch.randn(2, n, generator=draws)
                )
        trained.save_pretrained(folder / "run" / f"checkpoint-{step}")
    return Trajectory.from_full_weights(folder / "run", folder / "base", rank=4)


def ahead(folder: Path, key: str) -> torch.Tensor:
    """What 20 steps more would have added to one matrix since the start."""
    first, last = (FullModel.open(folder / p) for p in ("base", "run/checkpoint-60"))
    return (last.get(key) - first.get(key)) * 80 / 60


@pytest.mark.parametrize("method", ["factors", "nowcast"])
def test_no_method_steps_inside_factors_that_have_no_path(tmp_path: Path, method: str) -> None:
    traj = full_run(tmp_path)
    fast = {"updates": 5} if method == "nowcast" else {}
    with pytest.raises(InputError, match=r'no factors to step inside.*method="secant"'):
        leap(traj, method, horizon=10, **fast)
    assert "no factors to step inside" in backtest(traj, 10, "factors").horizons[10].skipped["factors"]


def test_an_adapter_of_a_full_run_is_the_leap_when_peft_loads_it(tmp_path: Path) -> None:
    made = leap(full_run(tmp_path), "secant", horizon=20)
    made.save_adapter(tmp_path / "out")
    loaded = peft_deltas(PeftModel.from_pretrained(model("llama"), tmp_path / "out"))
    assert set(loaded) == set(made.traj.modules)
    assert {name.rsplit(".", 1)[-1] for name in loaded} > {"q_proj", "v_proj", "down_proj"}
    for module, delta in loaded.items():
        torch.testing.assert_close(delta, ahead(tmp_path, module), rtol=1e-3, atol=1e-5)


def test_an_adapter_of_a_full_run_names_its_base_and_its_task(tmp_path: Path) -> None:
    leap(full_run(tmp_path), "secant", horizon=20).save_adapter(tmp_path / "out")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
    assert "| base model | base |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("built", "task"),
    [
        (["LlamaForCausalLM"], "CAUSAL_LM"),
        (["GPT2LMHeadModel"], "CAUSAL_LM"),
        (["LlamaModel"], None),
        (None, None),
    ],
)
def test_the_task_is_named_where_the_base_says_it(tmp_path: Path, built: object, task: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": built}))
    assert adapter_settings(tmp_path).get("task_type") == task
    (tmp_path / "config.json").unlink()
    assert adapter_settings(tmp_path) == {"base_model_name_or_path": str(tmp_path)}


def test_embeddings_are_no_linear_layers_and_go_into_a_whole_model(tmp_path: Path) -> None:
    made = leap(full_run(tmp_path, embeddings=True), "secant", horizon=20)
    with pytest.raises(InputError, match=r"model\.embed_tokens: .*save_merged") as caught:
        made.save_adapter(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "\n" not in str(caught.value)
    made.save_merged(tmp_path / "merged", tmp_path / "base")
    merged, base = FullModel.open(tmp_path / "merged"), FullModel.open(tmp_path / "base")
    for key in ("model.embed_tokens", "model.layers.1.mlp.down_proj"):
        torch.testing.assert_close(
            merged.get(key) - base.get(key), ahead(tmp_path, key), rtol=1e-3, atol=1e-5
        )


def small(kind: str) -> PreTrainedModel:
    """A model whose experts have a router, which is no linear layer."""
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 30,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=3))
    if kind == "gpt-oss":
        return GptOssForCausalLM(
            GptOssConfig(**sizes, head_dim=8, num_local_experts=4, num_experts_per_tok=2)
        )
    sizes |= {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes))


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_what_the_reduction_left_out_is_counted_as_lost(tmp_path: Path, kept: int) -> None:
    full_run(tmp_path)
    run, base = tmp_path / "run", tmp_path / "base"
    made = leap(Trajectory.from_full_weights(run, base, rank=kept), "secant", horizon=20, alpha=0.0)
    made.save_merged(tmp_path / "merged", base)
    made.save_adapter(tmp_path / "adapter")
    made.save_adapter(tmp_path / "one", rank=1)
    start, last, merged = (FullModel.open(p) for p in (base, run / "checkpoint-60", tmp_path / "merged"))
    lost = {m: float((last.get(m) - merged.get(m)).square().sum()) for m in made.traj.modules}
    moved = {m: float((last.get(m) - start.get(m)).square().sum()) for m in made.traj.modules}
    share = sum(lost.values()) / sum(moved.values())
    assert (share > 0.01) == (kept == 1)
    assert made.discarded == pytest.approx(share, rel=1e-3, abs=1e-6)
    for folder in ("merged", "adapter"):
        assert json.loads((tmp_path / folder / NOTE).read_text())["discarded_energy"] == made.discarded
        assert (
            f"| energy the rank leaves out | {share:.2%} |" in (tmp_path / folder / "README.md").read_text()
        )
    worst = json.loads((tmp_path / "one" / NOTE).read_text())["discarded_energy"]
    single = {m: torch.linalg.svdvals(last.get(m) - start.get(m)).square() for m in made.traj.modules}
    assert worst == pytest.approx(max(float(s[1:].sum() / s.sum()) for s in single.values()), rel=1e-3)


def test_what_a_recompression_loses_of_a_reduced_run_is_added_to_it(tmp_path: Path) -> None:
    class Reduced(MemoryCheckpoint):
        def beyond(self, module: str) -> float:
            return 1.0

    factors = torch.diag(torch.tensor([3.0, 2.0])), torch.eye(2)
    checkpoints = [Reduced(step, {"w": (factors[0], factors[1] * step / 20)}, 1.0) for step in (10, 20)]
    made = leap(Trajectory(tuple(checkpoints)), "secant", horizon=10, alpha=0.0)
    assert made.discarded == pytest.approx(1 / 14)
    made.save_adapter(tmp_path / "out", rank=1)
    note = json.loads((tmp_path / "out" / NOTE).read_text())
    assert note["discarded_energy"] == pytest.approx(5 / 14)


ROUTERS = {"mixtral": "gate.weight", "qwen3-moe": "gate.weight", "gpt-oss": "router.weight"}


@pytest.mark.parametrize("router", [True, False], ids=["the router", "another layer"])
@pytest.mark.parametrize("kind", ROUTERS)
def test_a_router_is_no_linear_layer_whatever_its_name(tmp_path: Path, kind: str, router: bool) -> None:
    trained = small(kind)
    trained.save_pretrained(tmp_path / "base")
    part = ROUTERS[kind] if router else "q_proj.weight"
    moving = [parameter for name, parameter in trained.named_parameters() if name.endswith(part)]
    assert moving
    for step in STEPS:
        for parameter in moving:
            parameter.data += 0.01
        trained.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    made = leap(
        Trajectory.from_full_weights(tmp_path / "run", tmp_path / "base", rank=2), "secant", horizon=20
    )
    if not router:
        made.save_adapter(tmp_path / "out")
        loaded = PeftModel.from_pretrained(small(kind), tmp_path / "out")
        assert set(peft_deltas(loaded)) == set(made.traj.modules)
        return
    with pytest.raises(InputError, match=r"is no linear layer in the model that .*config\.json describes"):
        made.save_adapter(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_its_config_what_the_layers_of_the_base_are_is_unknown(tmp_path: Path) -> None:
    made = leap(full_run(tmp_path), "secant", horizon=20)
    (tmp_path / "base" / "config.json").unlink()
    with pytest.raises(InputError, match=r"base: has no config\.json, .*save_merged\(out, base\)") as caught:
        made.save_adapter(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_conv1d_is_no_linear_layer_and_a_tied_pair_moves_as_it_was_trained(tmp_path: Path) -> None:
    made = leap(full_run(tmp_path, embeddings=True, kind="gpt2"), "secant", horizon=20)
    with pytest.raises(InputError, match="no linear layer"):
        made.save_adapter(tmp_path / "out")
    made.save_merged(tmp_path / "merged", tmp_path / "base")
    merged, base = FullModel.open(tmp_path / "merged"), FullModel.open(tmp_path / "base")
    for key in ("transformer.wte", "transformer.h.0.attn.c_proj"):
        torch.testing.assert_close(
            merged.get(key) - base.get(key), ahead(tmp_path, key), rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("name", [n for n in names() if n not in ("factors", "nowcast", "alpharl")])
def test_a_method_on_weights_does_not_care_how_they_were_decomposed(tmp_path: Path, name: str) -> None:
    fast = {"next": {"updates": 20}, "next-paper": {"epochs": 5}}.get(name, {})
    draws = torch.Generator().manual_seed(1)
    b = [torch.randn(9, 2, generator=draws, dtype=torch.float64) for _ in range(8)]
    factors = [(torch.eye(2, 7, dtype=torch.float64), sum(b[: i + 1]) + 8 * i) for i in range(8)]
    turns = [torch.randn(2, 2, generator=draws, dtype=torch.float64) for _ in b]
    turned = [(t @ a, b @ t.inverse()) for t, (a, b) in zip(turns, factors, strict=True)]
    steps = range(10, 81, 10)
    runs = [Trajectory.from_factors(steps, [{"w": pair} for pair in pairs]) for pairs in (factors, turned)]
    one, other = (get(name, **fast).fit(run, 20).delta("w").dense() for run in runs)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


def test_a_run_whose_configuration_names_no_modules_is_written_with_their_names(tmp_path: Path) -> None:
    write_run(tmp_path / "run", lora(target_modules=["down_proj", "k_proj"]))
    for path in (tmp_path / "run").glob("*/adapter_config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": None}))
    made = leap(Trajectory.load(tmp_path / "run"), "secant", horizon=10)
    made.save_adapter(tmp_path / "out")
    loaded = peft_deltas(PeftModel.from_pretrained(model("llama"), tmp_path / "out"))
    assert set(loaded) == set(made.traj.modules)


def test_names_in_memory_that_leave_a_module_out_are_refused(tmp_path: Path) -> None:
    pair = torch.ones(2, 4), torch.ones(3, 2)
    factors = [{"model.q_proj": pair, "model.up_proj": (pair[0], pair[1] * s)} for s in (1, 2, 3)]
    traj = Trajectory.from_factors((10, 20, 30), factors, adapter_config={"target_modules": ["q_proj"]})
    with pytest.raises(InputError, match=r"does not name 'model\.up_proj'"):
        leap(traj, "secant", horizon=10).save_adapter(tmp_path / "out")
    assert not (tmp_path / "out").exists()
