"""The callback refuses exactly what the command line refuses: each PEFT option, live and read back from its file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import config as options
from torch import nn

import lora_runs
from nextrl.checkpoints.adapter import AdapterCheckpoint
from nextrl.engines.history import AdapterHistory
from nextrl.engines.live_adapter import LiveAdapter, leap_into
from nextrl.engines.trl.callback import LeapCallback
from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from nextrl.trajectory.trajectory import Trajectory
from trl_runs import trainer

PLAIN: Callable[[], Any] = lora_runs.lora


def lora(**settings: Any) -> Callable[[], Any]:
    """A LoRA configuration, built when the test runs."""
    return lambda: lora_runs.lora(**settings)


def linear(name: str, **settings: Any) -> Callable[[], Any]:
    """Another method's configuration on linear layers."""
    return lambda: getattr(peft, name)(target_modules=["q_proj", "down_proj"], **settings)


def arrow() -> Any:
    """Arrow routing over the adapter itself: PEFT sets the names when it builds an Arrow model."""
    config = options.ArrowConfig()
    config.task_adapter_names, config.gks_adapter_names = ["default"], []
    return config


# Option -> (model, configuration, the clause of the refusal; None where both take it).
OPTIONS: dict[str, tuple[str, Callable[[], Any], str | None]] = {
    "plain": ("llama", PLAIN, None),
    "rslora": ("llama", lora(use_rslora=True), None),
    "rank_pattern": ("llama", lora(rank_pattern={"down_proj": 2}), None),
    "alpha_pattern": ("llama", lora(alpha_pattern={"v_proj": 3}), None),
    "dropout": ("llama", lora(lora_dropout=0.1), None),
    "lora_bias": ("llama", lora(lora_bias=True), None),
    "bias": ("llama", lora(bias="lora_only"), None),
    "modules_to_save": ("llama", lora(modules_to_save=["lm_head"]), None),
    "trainable tokens": ("llama", lora(trainable_token_indices={"embed_tokens": [3, 4]}), None),
    "embedding": ("llama", lora(target_modules=["embed_tokens", "q_proj"]), None),
    "Conv1D": ("gpt2", lora(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True), None),
    "convolution": ("convolutions", lora(target_modules=["conv", "head"]), None),
    "target_parameters": (
        "mixtral",
        lora(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]),
        None,
    ),
    "one layer": ("llama", lora(layers_to_transform=[1]), None),
    "layer replication": ("llama", lora(layer_replication=[(0, 2), (1, 2)]), None),
    "init False": ("llama", lora(init_lora_weights=False), None),
    "gaussian": ("llama", lora(init_lora_weights="gaussian"), None),
    "orthogonal": ("llama", lora(init_lora_weights="orthogonal"), None),
    "pissa": ("llama", lora(init_lora_weights="pissa"), None),
    "pissa_niter_4": ("llama", lora(init_lora_weights="pissa_niter_4"), None),
    "olora": ("llama", lora(init_lora_weights="olora"), None),
    "eva": ("llama", lora(init_lora_weights="eva", eva_config=options.EvaConfig()), None),
    "mica": ("llama", lora(init_lora_weights="mica"), None),
    "velora": ("llama", lora(velora_config=options.VeloraConfig()), None),
    "alora": ("llama", lora(task_type="CAUSAL_LM", alora_invocation_tokens=[1]), None),
    "dora": ("llama", lora(use_dora=True), "use_dora is set (DoRA)"),
    "bdlora": (
        "llama",
        lora(use_bdlora=options.BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2, match_strict=False)),
        "use_bdlora is set (BD-LoRA)",
    ),
    "qalora": ("llama", lora(use_qalora=True, qalora_group_size=4), "use_qalora is set (QA-LoRA)"),
    "kasa": ("llama", lora(kasa_config=options.KasaConfig()), "kasa_config is set (KaSA)"),
    "monteclora": (
        "llama",
        lora(monteclora_config=options.MontecloraConfig()),
        "monteclora_config is set (MonteCLoRA)",
    ),
    "arrow": ("llama", lora(arrow_config=arrow()), "arrow_config is set (Arrow routing)"),
    "vera": ("llama", linear("VeraConfig"), "peft_type VERA; only LoRA adapters"),
    "adalora": ("llama", linear("AdaLoraConfig", total_step=10), "peft_type ADALORA; only LoRA adapters"),
    "loha": ("llama", linear("LoHaConfig"), "peft_type LOHA; only LoRA adapters"),
    "ia3": (
        "llama",
        linear("IA3Config", feedforward_modules=["down_proj"]),
        "peft_type IA3; only LoRA adapters",
    ),
    "oft": ("llama", linear("OFTConfig", r=2, oft_block_size=0), "peft_type OFT; only LoRA adapters"),
    "randlora": ("llama", linear("RandLoraConfig", r=4), "peft_type RANDLORA; only LoRA adapters"),
}


class Convolutions(nn.Module):
    """A convolution and a linear layer, for PEFT's convolution adapters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 2, height, width) -> (batch, 5)."""
        hidden: torch.Tensor = self.head(self.conv(x).mean((2, 3)))
        return hidden


def adapted(kind: str, config: Any) -> Any:
    """The tiny model with an adapter of the configuration."""
    torch.manual_seed(0)
    return get_peft_model(Convolutions() if kind == "convolutions" else lora_runs.model(kind), config)


def live_refusal(model: Any) -> str | None:
    """What the live adapter objects to, without the name of the place."""
    try:
        LiveAdapter(model)
    except InputError as error:
        return str(error).split(": ", 1)[1]
    return None


def file_refusal(model: Any, folder: Path) -> str | None:
    """What the reader objects to in the saved adapter, without the path."""
    model.save_pretrained(str(folder))
    try:
        AdapterCheckpoint.open(0, folder)
    except InputError as error:
        return str(error).split(": ", 1)[1]
    return None


@pytest.mark.parametrize("option", OPTIONS)
def test_the_live_adapter_and_the_reader_say_the_same(tmp_path: Path, option: str) -> None:
    kind, config, clause = OPTIONS[option]
    model = adapted(kind, config())
    live, read = live_refusal(model), file_refusal(model, tmp_path)
    assert live == read
    assert (live is None) == (clause is None)
    assert clause is None or clause in str(live)


@pytest.mark.parametrize("option", [name for name, (_, _, clause) in OPTIONS.items() if clause is not None])
def test_the_callback_says_it_before_the_first_step(tmp_path: Path, option: str) -> None:
    kind, config, _ = OPTIONS[option]
    model = adapted(kind, config())
    expected = file_refusal(model, tmp_path / "saved")
    run = trainer(tmp_path, [LeapCallback()], model=model, max_steps=1)
    with pytest.raises(InputError, match=r"^adapter 'default'") as refusal:
        run.train()
    assert str(refusal.value).split(": ", 1)[1] == expected
    assert "\n" not in str(refusal.value)
    assert run.state.global_step == 0


@pytest.mark.parametrize("option", [name for name, (_, _, clause) in OPTIONS.items() if clause is None])
def test_both_see_the_same_matrices(tmp_path: Path, option: str) -> None:
    kind, config, _ = OPTIONS[option]
    model = adapted(kind, config())
    live = LiveAdapter(model)
    start = live.read()
    with torch.no_grad():
        for number, p in enumerate(live.parameters.values()):
            p += 0.01 * (number + 1)
    model.save_pretrained(str(tmp_path))
    checkpoint = AdapterCheckpoint.open(0, tmp_path)
    assert {slot.keys.a for slot in checkpoint.slots.values()} == {a for a, _, _ in live.pairs.values()}
    moved = lora_runs.displacement(live, start, live.read())
    assert len(moved) == len(checkpoint.modules)
    # Of a matrix that starts at 0, the displacement is the matrix in the file.
    zero = {name: torch.zeros_like(t) for name, t in start.items()}
    norms = sorted(float(d.square) for d in lora_runs.displacement(live, zero, live.read()))
    products = []
    for module in checkpoint.modules:
        a, b = checkpoint.factors(module)
        products.append(float((checkpoint.scaling(module) * b @ a).square().sum()))
    assert norms == pytest.approx(sorted(products), rel=1e-4)


@pytest.mark.parametrize("option", [name for name, (_, _, clause) in OPTIONS.items() if clause is None])
def test_a_leap_in_memory_is_the_leap_from_disk(tmp_path: Path, option: str) -> None:
    kind, config, _ = OPTIONS[option]
    model = adapted(kind, config())
    live, history = LiveAdapter(model), AdapterHistory()
    for step in (0, 10, 20):
        for p in live.parameters.values():
            p.data += 0.02 * torch.randn_like(p) * (step > 0)
        history.begin(0, live.read()) if step == 0 else history.add(step, live.read(), 0.5)
        model.save_pretrained(str(tmp_path / f"checkpoint-{step}"))
    found, wanted = (
        leap_into(live, leap(traj, "secant", 10), alpha=2.0)
        for traj in (history.trajectory(live), Trajectory.load(tmp_path))
    )
    for name, now in live.read().items():
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)
        assert not torch.equal(found[name], now)


def test_a_magnitude_vector_is_seen_whatever_the_configuration_says(tmp_path: Path) -> None:
    model = adapted("llama", lora_runs.lora(use_dora=True))
    model.peft_config["default"].use_dora = False
    live = live_refusal(model)
    assert live == file_refusal(model, tmp_path)
    assert re.match(r"model\.layers\.0\.mlp\.down_proj has lora_magnitude_vector", str(live))


@pytest.mark.parametrize(("field", "value"), [("lora_alpha", 0), ("r", 0), ("rank_pattern", {"(": 2})])
def test_a_configuration_that_makes_no_sense_is_refused_alike(tmp_path: Path, field: str, value: Any) -> None:
    model = adapted("llama", lora_runs.lora())
    setattr(model.peft_config["default"], field, value)
    live = live_refusal(model)
    assert live is not None
    assert live == file_refusal(model, tmp_path)


@pytest.mark.parametrize("init", ["loftq", "corda", "lora_ga"])
def test_initialisations_that_need_a_gpu_or_data_are_taken_alike(tmp_path: Path, init: str) -> None:
    # They change where A and B start, not what they mean; PEFT cannot run them on this model and a CPU.
    model = adapted("llama", lora_runs.lora())
    model.peft_config["default"].init_lora_weights = init
    assert live_refusal(model) is None
    assert file_refusal(model, tmp_path) is None


def test_a_rank_that_the_configuration_does_not_know_is_refused_alike(tmp_path: Path) -> None:
    model = adapted("llama", lora_runs.lora())
    model.peft_config["default"].r = 3
    live, read = live_refusal(model), file_refusal(model, tmp_path)
    assert live is not None
    assert live.split(" says ")[0].split(",")[0] == str(read).split(",")[0]
    assert "has rank 4" in live


def test_several_active_adapters_have_no_file_and_are_refused_live() -> None:
    model = adapted("llama", lora_runs.lora())
    model.add_adapter("second", lora_runs.lora())
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(InputError, match="one active LoRA adapter; this model has"):
        LiveAdapter(model)


def test_attributes_of_these_names_on_another_module_are_no_adapter() -> None:
    model = adapted("llama", lora_runs.lora())
    before = list(LiveAdapter(model).pairs)
    stranger = nn.Module()
    stranger.lora_A = nn.ModuleDict({"default": nn.Linear(3, 4, bias=False)})
    stranger.lora_B = nn.ModuleDict({"default": nn.Linear(4, 3, bias=False)})
    stranger.scaling = {"default": 1.0}
    model.base_model.model.stranger = stranger
    assert list(LiveAdapter(model).pairs) == before
