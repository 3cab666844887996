"""A stand-in for `python -m verl.trainer.main_ppo`: no model, no GPU, but verl's arguments, folders and files.

It parses its overrides with hydra's own parser, starts from the adapter or from its own last checkpoint, moves every
factor in a straight line, and writes FSDP shards of DTensors, the tracker, the metrics and the rollouts as verl 0.9.1
does. `STUB_EXIT=N:code` makes it stop after step N with that exit code, -9 by killing itself.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor


def arguments() -> dict:
    parsed = [OverridesParser.create().parse_override(text) for text in sys.argv[1:]]
    return {o.key_or_group.lstrip("+"): o.value() for o in parsed}


def plain(value) -> str:
    return getattr(value, "text", value)


def fail_if_due(step: int) -> None:
    at, _, code = os.environ.get("STUB_EXIT", "").partition(":")
    if at and step == int(at):
        if code == "-9":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stderr.write("RuntimeError: CUDA out of memory (stub)\n")
        sys.exit(int(code))


def main() -> None:
    args = arguments()
    folder = Path(plain(args["trainer.default_local_dir"]))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps({k: plain(v) for k, v in args.items()}) + "\n")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",))
    tracker = folder / "latest_checkpointed_iteration.txt"
    step = int(tracker.read_text()) if tracker.is_file() else 0
    if step:
        shard = folder / f"global_step_{step}" / "actor" / "model_world_size_1_rank_0.pt"
        state = {k: v.to_local() for k, v in torch.load(shard, weights_only=False).items()}
    else:
        saved = load_file(
            Path(plain(args["actor_rollout_ref.model.lora_adapter_path"])) / "adapter_model.safetensors"
        )
        state = {k.replace(".weight", ".default.weight"): v for k, v in saved.items()}
    torch.manual_seed(0)
    direction = {name: torch.randn(tensor.shape) for name, tensor in sorted(state.items())}
    rollouts = Path(plain(args["trainer.rollout_data_dir"]))
    rollouts.mkdir(parents=True, exist_ok=True)
    rate = float(args["actor_rollout_ref.actor.optim.lr"])
    with open(plain(args["ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"]), "w") as metrics:
        while step < int(args["trainer.total_training_steps"]):
            step += 1
            state = {name: tensor + rate * direction[name] for name, tensor in state.items()}
            metrics.write(
                json.dumps({"step": step, "data": {"critic/score/mean": 0.1 + 0.001 * step}}) + "\n"
            )
            metrics.flush()
            rows = [{"input": "3+4*5-2=", "output": "005=5", "step": step}] * 4
            (rollouts / f"{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            fail_if_due(step)
            if step % int(args["trainer.save_freq"]) == 0 or step == int(
                args["trainer.total_training_steps"]
            ):
                actor = folder / f"global_step_{step}" / "actor"
                actor.mkdir(parents=True)
                parts = {k: distribute_tensor(v, mesh, [Shard(0)]) for k, v in state.items()}
                torch.save(parts, actor / "model_world_size_1_rank_0.pt")
                (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
                (actor / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
                tracker.write_text(str(step))


if __name__ == "__main__":
    main()
