"""A process of its own: how many of an adapter's tensors verl sends to its rollout servers, on a line of their own.

python verl_flat.py MODEL fsdp|fsdp2
"""

from __future__ import annotations

import os
import sys

import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from transformers import AutoModelForCausalLM
from verl.utils.fsdp_utils import collect_lora_params, get_fsdp_wrap_policy


def main(model: str, strategy: str) -> None:
    """Print how many tensors of the adapter are sent."""
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    actor = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    if strategy == "fsdp":
        policy = get_fsdp_wrap_policy(module=actor, config=None, is_lora=True)
        actor = FullyShardedDataParallel(
            actor, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=False
        )
    else:
        fully_shard(actor)
    sys.stdout.write(f"\n{len(collect_lora_params(actor, layered_summon=False, base_sync_done=True))}\n")


main(*sys.argv[1:])
