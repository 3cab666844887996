"""Damaged files: whatever bytes lie there, the reader answers with numbers or with one clear InputError."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_runs import lora, write_run
from nextrl.checkpoints.adapter import AdapterCheckpoint
from nextrl.errors import InputError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    write_run(root, lora(rank_pattern={"v_proj": 2}), steps=(10,))
    folder = root / "checkpoint-10"
    return {
        name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")
    }


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
    st.one_of(st.none(), st.integers(0, 4000)),
)
def test_only_input_errors(tmp_path, good, target, edits, cut):
    for name, data in good.items():
        spoilt = bytearray(data)
        if name == target:
            for place, value in edits:
                spoilt[place % len(spoilt)] = value
            spoilt = spoilt[:cut]
        (tmp_path / name).write_bytes(bytes(spoilt))
    message = complaint(tmp_path)
    assert message is None or (str(tmp_path) in message and "\n" not in message)


def complaint(folder):
    """What the reader has against the folder; every exception but InputError is a failure."""
    try:
        checkpoint = AdapterCheckpoint.open(10, folder)
        for module in checkpoint.modules:
            checkpoint.factors(module)
            checkpoint.scaling(module)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "change",
    [
        {"rank_pattern": {"(": 2}},
        {"alpha_pattern": {"*": 2}},
        {"rank_pattern": {"q_proj": 0.5}},
        {"rank_pattern": [1]},
        {"r": True},
        {"r": "8"},
        {"lora_alpha": 1e400},
        {"lora_alpha": -1},
        {"peft_type": None},
    ],
)
def test_nonsense_in_the_configuration(tmp_path, good, change):
    (tmp_path / "adapter_model.safetensors").write_bytes(good["adapter_model.safetensors"])
    config = json.loads(good["adapter_config.json"])
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        AdapterCheckpoint.open(10, tmp_path)
