"""Leaps on disk: gauge-preserving fits, rank on request, merged models, atomic files, provenance."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lora_runs import lora, model, write_run
from nextrl.checkpoints.atomic import replacing, sha256
from nextrl.errors import InputError
from nextrl.leaps.adapter_file import adapter_state, write_adapter
from nextrl.leaps.merged_model import write_merged
from nextrl.leaps.rank import fit_to_frozen, fit_to_rank
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(0, 6),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_fit_is_the_best_of_its_rank_whatever_the_gauge(m, n, r, q, degenerate, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = (
        torch.randn(r, n, generator=g, dtype=torch.float64),
        torch.randn(m, r, generator=g, dtype=torch.float64),
    )
    if degenerate:
        a[r // 2 :] = a[: r - r // 2].clone()
    target = LowRank(b * 0.7, a.mT)
    if q:
        target = target + LowRank(
            torch.randn(m, q, generator=g, dtype=torch.float64),
            torch.randn(n, q, generator=g, dtype=torch.float64),
        )
    new_a, new_b, lost, _ = fit_to_rank(target, a, b, 0.7)
    assert new_a.shape == a.shape
    assert new_b.shape == b.shape
    best, share = target.recompress(min(r, target.rank))
    scale = float(target.norm()) + 1e-12
    torch.testing.assert_close(0.7 * new_b @ new_a, best.dense(), rtol=0, atol=1e-9 * scale)
    assert float(lost) == pytest.approx(float(share), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_direction_that_the_old_rows_lack_gets_a_row_of_their_size(seed: int) -> None:
    """Else a column of B is huge, and the first step of Adam moves the product by a hundred times its old step."""
    draws = torch.Generator().manual_seed(seed)
    a = torch.linalg.qr(torch.randn(12, 4, generator=draws, dtype=torch.float64)).Q.mT * torch.tensor(
        [[1.0], [0.8], [0.7], [0.5]]
    )
    b = 0.1 * torch.randn(9, 4, generator=draws, dtype=torch.float64)
    outside = torch.linalg.qr(
        torch.cat([a.mT, torch.randn(12, 1, generator=draws, dtype=torch.float64)], 1)
    ).Q[:, -1:]
    new = LowRank(torch.randn(9, 1, generator=draws, dtype=torch.float64), outside + 1e-3 * a.mT[:, :1])
    target = LowRank(b, a.mT) + new
    new_a, new_b, *_ = fit_to_rank(target, a, b, 1.0)
    best, _ = target.recompress(4)
    torch.testing.assert_close(new_b @ new_a, best.dense(), rtol=0, atol=1e-10)
    assert float(torch.linalg.svdvals(new_a)[-1]) >= 0.5 - 1e-9
    assert float(new_b.norm()) <= float(best.norm()) / 0.5


@pytest.mark.parametrize("frozen", ["A", "B"])
def test_with_one_factor_frozen_the_product_is_as_near_as_the_other_can_bring_it(frozen: str) -> None:
    draws = torch.Generator().manual_seed(0)
    a, b, left, right = (
        torch.randn(*size, generator=draws, dtype=torch.float64) for size in ((3, 8), (6, 3), (6, 2), (8, 2))
    )
    target = 0.7 * b @ a + left @ right.mT
    new_a, new_b, lost, energy = fit_to_frozen(LowRank(left, right), a, b, 0.7, frozen)
    if frozen == "A":
        assert torch.equal(new_a, a)
        best = torch.linalg.lstsq(0.7 * a.mT, target.mT).solution.mT @ (0.7 * a)
    else:
        assert torch.equal(new_b, b)
        best = 0.7 * b @ torch.linalg.lstsq(0.7 * b, target).solution
    torch.testing.assert_close(0.7 * new_b @ new_a, best)
    assert energy == pytest.approx(float(target.square().sum()))
    assert lost == pytest.approx(float((target - best).square().sum()) / energy)
    assert 0.0 < lost < 1.0


def test_frozen_factors_stay_to_the_bit_where_nothing_else_can_move() -> None:
    draws = torch.Generator().manual_seed(0)
    a, b, left, right = (torch.randn(*size, generator=draws) for size in ((3, 8), (6, 3), (6, 2), (8, 2)))
    new_a, new_b, lost, _ = fit_to_frozen(LowRank(left, right), a, b, 0.7, "AB")
    assert torch.equal(new_a, a)
    assert torch.equal(new_b, b)
    assert lost > 0.0
    still_a, still_b, *_ = fit_to_frozen(LowRank.zeros(6, 8), a, b, 0.7, "A")
    assert torch.equal(still_a, a)
    assert torch.equal(still_b, b)


def test_a_direction_that_frozen_rows_hardly_have_is_left_out() -> None:
    """Else B would be as large as that row is small."""
    a = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1e-7, 0.0]], dtype=torch.float64)
    b = torch.zeros(2, 2, dtype=torch.float64)
    _, new_b, lost, _ = fit_to_frozen(
        LowRank(torch.eye(2).double(), torch.eye(3)[:, :2].double()), a, b, 1.0, "A"
    )
    assert new_b.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert lost == pytest.approx(0.5)


def test_fitting_the_weight_itself_returns_the_old_factors():
    g = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(4, 20, generator=g, dtype=torch.float64),
        torch.randn(30, 4, generator=g, dtype=torch.float64),
    )
    new_a, new_b, lost, _ = fit_to_rank(LowRank(b * 2.0, a.mT), a, b, 2.0)
    torch.testing.assert_close(new_a, a)
    torch.testing.assert_close(new_b, b)
    assert float(lost) < 1e-20


def test_a_zero_target_keeps_a_and_zeroes_b():
    a, b = torch.ones(2, 5), torch.ones(4, 2)
    new_a, new_b, *_ = fit_to_rank(LowRank.zeros(4, 5), a, b, 1.0)
    assert torch.equal(new_a, a)
    assert not new_b.any()


def test_rank_on_request_reports_discarded_energy_and_provenance(tmp_path):
    write_run(tmp_path / "run", lora(use_rslora=True))
    traj = Trajectory.load(tmp_path / "run")
    new = {m: traj.weight(40, m) + traj.delta(m, 10, 40) for m in traj.modules}
    out = write_adapter(
        traj, 40, new, tmp_path / "out", rank=2, provenance={"method": "secant", "alpha": 1.0}
    )
    record = json.loads((out / "nextrl.json").read_text())
    assert record["method"] == "secant"
    assert record["from_step"] == 40
    assert 0 < record["discarded_energy"] < 1
    source = tmp_path / "run" / "checkpoint-40" / "adapter_model.safetensors"
    assert record["source_sha256"][str(source)] == sha256(source)
    assert record["sha256"]["adapter_model.safetensors"] == sha256(out / "adapter_model.safetensors")
    again = Trajectory.load({40: out})
    for module in traj.modules:
        assert again.shape(module)[2] == 2
        assert again.scaling(module) == pytest.approx(traj.scaling(module))
        best = new[module].recompress(2)[0].dense()
        torch.testing.assert_close(again.weight(40, module).dense(), best, rtol=1e-5, atol=1e-6)


def test_adapter_state_has_the_names_of_the_file(tmp_path):
    write_run(tmp_path, lora(modules_to_save=["lm_head"]), steps=(10,))
    traj = Trajectory.load(tmp_path)
    stored = load_file(tmp_path / "checkpoint-10" / "adapter_model.safetensors")
    state = adapter_state(traj, 10, {})
    assert set(state) == set(stored)
    assert all(torch.equal(state[key], stored[key]) for key in stored)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (
            "llama",
            {"target_modules": ["q_proj", "down_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
        ),
        ("llama", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    ],
)
def test_merged_models_equal_pefts_merge(tmp_path, kind, options):
    trained, _ = write_run(tmp_path / "run", lora(**options), kind=kind, steps=(10, 20))
    model(kind).save_pretrained(tmp_path / "base", max_shard_size="8KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    traj = Trajectory.load(tmp_path / "run")
    out = write_merged(traj, 20, {}, tmp_path / "base", tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        expected = trained.eval()(ids).logits
        torch.testing.assert_close(ours(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert json.loads((out / "nextrl.json").read_text())["kind"] == "merged"


def test_merging_refuses_the_wrong_base_and_tied_embeddings(tmp_path):
    write_run(tmp_path / "run", lora(target_modules=["embed_tokens"]), steps=(10,))
    traj = Trajectory.load(tmp_path / "run")
    model("gpt2").save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"has no 'model.embed_tokens.weight', which the adapter moves"):
        write_merged(traj, 10, {}, tmp_path / "other", tmp_path / "out")
    model("llama").save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(InputError, match="tied"):
        write_merged(traj, 10, {}, tmp_path / "base", tmp_path / "out")
    with pytest.raises(InputError, match="neither a folder nor a model in the Hugging Face cache"):
        write_merged(traj, 10, {}, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_adapter_is_never_overwritten(tmp_path):
    write_run(tmp_path, steps=(10, 20))
    traj = Trajectory.load(tmp_path)
    with pytest.raises(InputError, match="not written by nextrl"):
        write_adapter(traj, 20, {}, tmp_path / "checkpoint-10")
    out = write_adapter(traj, 20, {}, tmp_path / "out")
    write_adapter(traj, 20, {}, out)  # our own may be
    with pytest.raises(InputError, match="no such module"):
        write_adapter(traj, 20, {"nonsense": LowRank.zeros(2, 2)}, tmp_path / "more")
    with pytest.raises(InputError, match="--rank 0"):
        write_adapter(traj, 20, {}, tmp_path / "more", rank=0)


def test_pissa_keeps_its_rank(tmp_path):
    write_run(tmp_path, lora(init_lora_weights="pissa"), steps=(10,), start=True)
    traj = Trajectory.load(tmp_path)
    with pytest.raises(InputError, match="ties the base model to the rank"):
        write_adapter(traj, 10, {}, tmp_path / "out", rank=2)
    base = model()
    loaded = PeftModel.from_pretrained(base, str(write_adapter(traj, 10, {}, tmp_path / "same")))
    assert loaded.peft_config["default"].init_lora_weights == "pissa"


def test_a_crash_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def crash():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
