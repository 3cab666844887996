"""Every way in which PEFT writes W = W_base + s B A, on real small models; and refusals of what is not
that."""

import pytest
import torch
from peft import PeftModel

from lora_runs import lora, peft_deltas, write_run
from lora_runs import model as tiny
from nextrl.errors import InputError
from nextrl.leaps.adapter_file import write_adapter
from nextrl.leaps.leap import leap
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory

VARIANTS = {
    "plain": ("llama", {}),
    "rslora": ("llama", {"use_rslora": True}),
    "patterns": (
        "llama",
        {"rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 6}, "alpha_pattern": {"v_proj": 3}},
    ),
    "rslora patterns": (
        "llama",
        {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 5}},
    ),
    "one layer": ("qwen2", {"layers_to_transform": [1]}),
    "all linear": ("qwen2", {"target_modules": "all-linear"}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "gaussian": ("llama", {"init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {"init_lora_weights": "orthogonal"}),
    "bias": ("llama", {"lora_bias": True}),
    "modules to save": ("llama", {"modules_to_save": ["lm_head"]}),
    "experts": (
        "mixtral",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "experts of their own rank and alpha": (
        "mixtral",
        {
            "target_modules": ["q_proj", "k_proj", "v_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
            "rank_pattern": {"experts.gate_up_proj": 2, "experts.down_proj": 2},
            "alpha_pattern": {"experts.(gate_up|down)_proj": 32},
        },
    ),
    "a pattern of the experts' module": (
        "mixtral",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
            "rank_pattern": {"mlp.experts": 2},
        },
    ),
    "one parameter of experts": (
        "mixtral",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["gate_up_proj"],
            "rank_pattern": {"gate_up_proj": 2, "q_proj": 3},
            "alpha_pattern": {"layers.1.mlp.experts.gate_up_proj": 32, "q_proj": 3},
        },
    ),
}


def dense_by_stored_module(traj, step):
    """Our weights as PEFT shapes them: embeddings and Conv1D transposed, experts stacked."""
    found = {}
    last = traj.checkpoints[-1]
    for module in traj.modules:
        slot, w = last.slots[module], traj.weight(step, module).dense().float()
        if slot.keys.embedding or last.settings.transposed:
            w = w.mT
        if slot.experts > 1:
            found.setdefault(slot.keys.name, []).append(w)
        else:
            found[module] = w
    return {name: torch.stack(w) if isinstance(w, list) else w for name, w in found.items()}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_deltas_are_those_of_peft(tmp_path, name):
    kind, options = VARIANTS[name]
    _, deltas = write_run(tmp_path, lora(**options), kind=kind, steps=(10, 20))
    traj = Trajectory.load(tmp_path)
    for step, expected in zip(traj.steps, deltas, strict=True):
        ours = dense_by_stored_module(traj, step)
        assert set(ours) == set(expected)
        for module, delta in expected.items():
            mine = ours[module]
            if mine.dim() == 3 and mine.shape != delta.shape:
                mine = mine.mT
            torch.testing.assert_close(mine, delta, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("extra", [0, 1], ids=["same rank", "one more"])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_what_we_write_loads_in_peft_with_the_same_weights(tmp_path, name, extra):
    kind, options = VARIANTS[name]
    trained, _ = write_run(tmp_path / "run", lora(**options), kind=kind, steps=(10, 20))
    traj = Trajectory.load(tmp_path / "run")
    new = {}
    for module in traj.modules:
        m, n, r = traj.shape(module)
        g = torch.Generator().manual_seed(m + n)
        bump = LowRank(
            torch.randn(m, 1, generator=g, dtype=torch.float64),
            torch.randn(n, 1, generator=g, dtype=torch.float64),
        )
        new[module] = traj.weight(20, module) + bump * 0.1 if extra else traj.weight(20, module) * 1.25
        assert new[module].rank <= r + extra
    out = write_adapter(traj, 20, new, tmp_path / "out", provenance={"method": "test"})
    loaded = PeftModel.from_pretrained(tiny(kind), str(out))
    deltas = peft_deltas(loaded)
    again = Trajectory.load({20: out})
    ours = dense_by_stored_module(again, 20)
    for module in traj.modules:
        torch.testing.assert_close(
            again.weight(20, module).dense(), new[module].dense(), rtol=1e-5, atol=1e-6
        )
    for module, delta in deltas.items():
        mine = ours[module]
        mine = mine.mT if mine.dim() == 3 and mine.shape != delta.shape else mine
        torch.testing.assert_close(mine, delta, rtol=1e-5, atol=1e-6)
    # What is carried along is really carried along.
    then, now = trained.state_dict(), loaded.state_dict()
    for key in then:
        if "modules_to_save" in key or "lora_B.default.bias" in key:
            torch.testing.assert_close(now[key], then[key])


EXPERTS = {
    "target_modules": ["q_proj", "k_proj", "v_proj"],
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
}


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_experts_of_which_the_file_does_not_tell_the_parameter_are_refused(tmp_path, key):
    """Which of two stacks is gate_up_proj is not in the file, and so neither is whose value the pattern gives."""
    write_run(tmp_path, lora(**EXPERTS, **{key: {"experts.gate_up_proj": 12}}), kind="mixtral", steps=(10,))
    with pytest.raises(
        InputError, match=rf"adapter_config.json: {key} gives parameters of one module .* 12 for"
    ):
        Trajectory.load(tmp_path)


def test_a_pattern_that_says_the_usual_value_is_none(tmp_path):
    options = lora(**EXPERTS, alpha_pattern={"experts.gate_up_proj": 8})
    write_run(tmp_path, options, kind="mixtral", steps=(10,))
    traj = Trajectory.load(tmp_path)
    assert {traj.scaling(module) for module in traj.modules} == {2.0}


def test_a_leap_that_widens_one_stack_of_experts_loads_in_peft(tmp_path):
    """The other stack of the module takes its rank: PEFT can be told a parameter's, and which is which is unknown."""
    write_run(tmp_path / "run", lora(**EXPERTS), kind="mixtral", steps=(10, 20))
    traj = Trajectory.load(tmp_path / "run")
    widened = [module for module in traj.modules if "experts.base_layer" in module]
    new = {m: traj.weight(20, m) + traj.delta(m, 10, 20) for m in widened}
    out = write_adapter(traj, 20, new, tmp_path / "out")
    deltas = peft_deltas(PeftModel.from_pretrained(tiny("mixtral"), str(out)))
    for module, mine in dense_by_stored_module(Trajectory.load({20: out}), 20).items():
        mine = mine.mT if mine.dim() == 3 and mine.shape != deltas[module].shape else mine
        torch.testing.assert_close(mine, deltas[module], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_inits_that_change_the_base_need_step_zero(tmp_path, init):
    _, deltas = write_run(tmp_path, lora(init_lora_weights=init), steps=(10, 20), start=True)
    traj = Trajectory.load(tmp_path)
    for module in traj.modules:
        torch.testing.assert_close(
            traj.delta(module, 0, 20).dense().float(),
            deltas[2][module] - deltas[0][module],
            rtol=1e-4,
            atol=1e-6,
        )
    assert Trajectory.load(tmp_path, steps=[10, 20]).knows_start
    late = Trajectory.load({step: tmp_path / f"checkpoint-{step}" for step in (10, 20)})
    with pytest.raises(InputError, match="checkpoint-0"):
        late.delta(late.modules[0], 0, 20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_files_are_widened_exactly(tmp_path, dtype):
    write_run(tmp_path, steps=(10, 20), dtype=dtype)
    traj = Trajectory.load(tmp_path)
    a, b = traj.factors(20, traj.modules[0])
    assert a.dtype == dtype
    torch.testing.assert_close(traj.weight(20, traj.modules[0]).dense(), 2.0 * b.double() @ a.double())


def test_dora_is_refused_and_the_module_named(tmp_path):
    write_run(tmp_path, lora(use_dora=True), steps=(10,))
    with pytest.raises(InputError, match="use_dora"):
        Trajectory.load(tmp_path)
    config = tmp_path / "checkpoint-10" / "adapter_config.json"
    config.write_text(config.read_text().replace('"use_dora": true', '"use_dora": false'))
    with pytest.raises(InputError, match=r"model.layers.0.mlp.down_proj has lora_magnitude_vector"):
        Trajectory.load(tmp_path)


@pytest.mark.parametrize("name", ["embedding", "bias"])
def test_a_leap_names_the_parameters_of_the_live_model(tmp_path, name):
    """Linear layers, their biases, and embeddings, whose factors PEFT keeps without a `.weight`."""
    kind, options = VARIANTS[name]
    live, _ = write_run(tmp_path, lora(**options), kind=kind, steps=(10, 20))
    state = leap(Trajectory.load(tmp_path), "secant", horizon=10).leap_state("default")
    assert set(state) == {name for name, _ in live.named_parameters() if ".lora_" in name}
    ends = {"embedding": ".lora_embedding_A.default", "bias": ".lora_B.default.bias"}
    assert any(key.endswith(ends[name]) for key in state)
