"""verl's trainer and worker with leaps, on stand-ins for the modules of verl and Ray that they are built on."""

import contextlib
import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from nextrl.engines.verl import options
from nextrl.engines.verl.shards import Shards
from nextrl.judge import decision_file


class Sync:
    """What `PPOTrainerSync` has of its own; by the mode it chooses its ways when it is made."""

    def __init__(self, config):
        self.config, self.trainer_mode, self.global_steps = config, config.trainer.v1.trainer_mode, 0
        self.total_training_steps, self.steps_per_epoch = config.trainer.total_training_steps, 3

    def on_init_end(self):
        pass

    def step(self, metrics, timing_raw):
        self.taken = True
        return None


class Device:
    """What verl calls the device's module."""

    def __init__(self, calls, there=True):
        self.calls, self.there = calls, there

    def is_available(self):
        return self.there

    def synchronize(self):
        assert self.there
        self.calls.append("synchronize")


CALLS: list[str] = []
DEVICE = Device(CALLS)

STANDINS = {
    "ray": {"remote": lambda cls: cls},
    "transfer_queue": {"KVBatchMeta": SimpleNamespace},
    "verl": {"__version__": "0.9.1"},
    "verl.trainer.ppo.utils": {"Role": SimpleNamespace(ActorRollout=1, ActorRolloutRef=2)},
    "verl.trainer.ppo.v1": {"PPOTrainerSync": Sync},
    "verl.utils.debug": {"marked_timer": lambda *a, **k: contextlib.nullcontext()},
    "verl.utils.device": {"get_torch_device": lambda: DEVICE},
    "verl.workers.utils.padding": {"response_from_nested": None},
    "verl.workers.engine_workers": {"ActorRolloutRefWorker": object},
    "verl.single_controller.base.decorator": {
        "Dispatch": SimpleNamespace(ONE_TO_ALL=1),
        "register": lambda **_: lambda function: function,
    },
}


@pytest.fixture
def verl(monkeypatch):
    for name, content in STANDINS.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(options, "_sees_trl", lambda: False)
    ours = ("nextrl.engines.verl.worker", "nextrl.engines.verl.trainer")
    for name in ours:
        monkeypatch.delitem(sys.modules, name, raising=False)
    worker, trainer = (importlib.import_module(name) for name in ours)
    CALLS.clear()
    yield SimpleNamespace(worker=worker, trainer=trainer)
    for name in ours:
        sys.modules.pop(name, None)


class Group:
    """The workers, of which there is one."""

    def __init__(self):
        module = nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        self.shards = Shards(module, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0))

    def nextrl(self, forgotten, method, *arguments):
        return [getattr(self.shards, method)(*arguments)]


def made(verl, folder, **trainer):
    given = {
        "use_v1": True, "n_gpus_per_node": 1, "nnodes": 1, "v1": {"trainer_mode": "nextrl"}, "total_epochs": 4,
        "total_training_steps": 40, "default_local_dir": str(folder), **trainer,
    }  # fmt: skip
    actor = {"strategy": "fsdp2", "fsdp_config": {"fsdp_size": -1}, "optim": {"optimizer": "AdamW"}}
    parts = {"actor": actor, "model": {}, "rollout": {"n": 2, "top_k": 20}}
    config = OmegaConf.create(
        {"trainer": given, "actor_rollout_ref": parts, "data": {"train_batch_size": 4}, "algorithm": {}}
    )
    found = verl.trainer.LeapTrainer(config)
    found.actor_rollout_wg = Group()
    return found


def test_the_config_keeps_what_the_user_wrote(verl, tmp_path):
    """Loggers store it."""
    trainer = made(verl, tmp_path)
    assert trainer.trainer_mode == "sync"
    assert trainer.config.trainer.v1.trainer_mode == "nextrl"


@pytest.mark.parametrize(("epochs", "ends"), [(4, 12), (100, 40)])
def test_a_run_ends_where_verl_ends_it(verl, tmp_path, caplog, epochs, ends):
    """After `total_epochs` passes of three steps, or after `total_training_steps`: what hangs on the end does so."""
    trainer = made(verl, tmp_path, total_epochs=epochs)
    trainer.on_init_end()
    assert trainer._run.max_steps == ends
    said = [r.getMessage() for r in caplog.records if "ends this run" in r.getMessage()]
    assert len(said) == (ends == 12)
    given_back = []
    trainer._session = SimpleNamespace(
        step_begins=lambda step: None,
        step_ended=lambda step: None,
        train_ended=lambda: given_back.append(trainer.global_steps),
        memory=trainer._session.memory,
        decisions=[],
    )
    trainer._read_batch = lambda batch: None
    trainer._run.stepped = lambda batch: None
    for step in range(1, ends + 1):
        trainer.global_steps = step
        trainer.step({}, {})
    assert given_back == [ends]


def test_an_evaluation_leaves_the_log_of_decisions_and_the_first_step_begins_it(verl, tmp_path, monkeypatch):
    """`trainer.val_only=True` with a path to resume from: verl never comes to a step."""
    log = tmp_path / decision_file.DECISIONS
    log.write_text("the run's\n")
    found = made(verl, tmp_path)
    found.on_init_end()
    assert log.read_text() == "the run's\n"
    monkeypatch.setattr(Sync, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        found.step({}, {})
    assert log.read_text() == ""


def test_a_truncated_rollout_is_no_proof_of_the_delivery(verl, tmp_path):
    trainer = made(verl, tmp_path)
    trainer.on_init_end()
    assert not trainer._run.comparable


@pytest.mark.parametrize("there", [True, False])
def test_a_worker_waits_for_its_device_before_it_reads(verl, monkeypatch, there):
    """With `param_offload` verl copies to the host without waiting (utils/fsdp_utils.py)."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(DEVICE, "there", there)
    worker = verl.worker.LeapWorker()
    shards = SimpleNamespace(drop=lambda keys: CALLS.append("drop"), keep=lambda key: CALLS.append(key))
    worker.__dict__["_shards"] = shards
    worker._nextrl([], "keep", "{rank} of {world}")
    expected = [*["synchronize"] * there, "drop", "1 of 2"]
    assert expected == CALLS
