"""Full-weight checkpoints: exact leading triples, streamed deltas against a base."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lora_runs import model
from nextrl.checkpoints.dense import leading_triples
from nextrl.errors import InputError
from nextrl.trajectory.trajectory import Trajectory


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 10), st.integers(0, 2**31))
def test_leading_triples_match_lapack(m, n, k, seed):
    k = min(k, m, n)
    d = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, v = leading_triples(d, k)
    torch.testing.assert_close(s, torch.linalg.svdvals(d)[:k], rtol=1e-8, atol=0)
    torch.testing.assert_close(d @ v, u * s, rtol=0, atol=1e-6 * float(s[0]))


def test_a_zero_matrix_and_equal_singular_values():
    assert float(leading_triples(torch.zeros(30, 20), 2)[1].max()) == 0.0
    torch.testing.assert_close(leading_triples(torch.eye(30), 3)[1], torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("shard", ["5GB", "8KB"], ids=["single", "sharded"])
def test_a_full_run_becomes_a_trajectory(tmp_path, shard):
    base, run = tmp_path / "base", tmp_path / "run"
    trained = model("llama")
    trained.save_pretrained(base)
    torch.manual_seed(0)
    moves = {
        n: torch.randn(p.shape[0], 2) @ torch.randn(2, p.shape[1])
        for n, p in trained.named_parameters()
        if p.dim() == 2
    }
    for step in (10, 20):
        for name, parameter in trained.named_parameters():
            if name in moves and "embed" not in name:
                parameter.data += 0.01 * moves[name]
        trained.save_pretrained(run / f"checkpoint-{step}", max_shard_size=shard)
    traj = Trajectory.from_full_weights(run, base, rank=4)
    assert traj.steps == (10, 20)
    assert "model.embed_tokens" not in traj.modules
    name = "model.layers.0.mlp.down_proj"
    torch.testing.assert_close(
        traj.weight(20, name).dense().float(), 0.02 * moves[f"{name}.weight"], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(InputError, match="full-weight checkpoints and no LoRA adapters"):
        Trajectory.load(run)
    with pytest.raises(InputError, match=r"neither model\.safetensors nor"):
        Trajectory.from_full_weights(run, tmp_path)


@pytest.fixture
def full_run(tmp_path):
    """A run of all weights and its base: `tmp_path / "run"` and `tmp_path / "base"`."""
    trained = model("llama")
    trained.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    for step in (10, 20):
        for parameter in trained.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
        trained.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path / "run", tmp_path / "base"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("place", ["base", "run/checkpoint-20"])
def test_codes_are_not_taken_for_weights(full_run, tmp_path, place, dtype):
    file = tmp_path / place / "model.safetensors"
    state = load_file(file)
    key = "model.layers.0.self_attn.q_proj.weight"
    state[key] = (state[key] * 100).to(dtype)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=rf"{place}.*q_proj.weight is stored as \w+, which are codes"
    ) as caught:
        Trajectory.from_full_weights(*full_run, rank=4)
    assert "--as adapter" not in str(caught.value)


@pytest.mark.parametrize("place", ["base", "run/checkpoint-20"])
def test_a_model_that_says_it_is_quantised_is_refused(full_run, tmp_path, place):
    file = tmp_path / place / "config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "quantization_config": {"load_in_8bit": True}})
    )
    with pytest.raises(InputError, match=rf"{place}/config.json: the model is quantised"):
        Trajectory.from_full_weights(*full_run, rank=4)
