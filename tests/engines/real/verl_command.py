"""A plain command of verl on the CPU with the tiny model, as a verl user would have it, and what it left behind.

What is special about a CPU (the platform shim, the sizes) stands here; what nextrl adds comes in as further words.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nextrl.engines.settings import LoraSettings
from nextrl.engines.verl.adapters import fresh_adapter
from nextrl.engines.verl.data import plain_template, write_data
from nextrl.tasks import get
from nextrl.tasks.bases import tiny

HERE = Path(__file__).absolute().parent

ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_DEVICE": "cuda",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # tests of other engines turn it off
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_MOE_PREPACK": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "WANDB_MODE": "disabled",
}


def prepare(folder: Path, task: str = "chain") -> None:
    """Write the tiny model, an adapter to start from, and the task's data, once."""
    if (folder / "base").is_dir():
        return
    model, tokenizer = tiny.load(task)
    tokenizer.chat_template = plain_template(tokenizer)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    write_data(get(task), folder / "data")
    fresh_adapter(str(folder / "base"), LoraSettings(r=8, alpha=16), seed=0).write(folder / "start")


def words(folder: Path, out: Path, steps: int, gpus: int = 1, strategy: str = "fsdp2") -> list[str]:
    """verl's own words for a GRPO run with LoRA.

    Args:
        folder: what `prepare` wrote.
        out: verl's `default_local_dir`.
    """
    actor, rollout, model = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
    ray = "ray_kwargs.ray_init"
    return [
        f"data.train_files={folder}/data/train.jsonl",
        f"data.val_files={folder}/data/validation.jsonl",
        "data.train_batch_size=8",
        "data.max_prompt_length=24",
        "data.max_response_length=16",
        "data.seed=1",
        "data.dataloader_num_workers=0",
        f"reward.custom_reward_function.path={folder}/data/reward.py",
        "reward.custom_reward_function.name=compute_score",
        "reward.num_workers=1",
        "algorithm.adv_estimator=grpo",
        f"{model}.path={folder}/base",
        f"{model}.lora_rank=8",
        f"{model}.lora_alpha=16",
        f"{model}.target_modules=all-linear",
        f"{model}.use_remove_padding=False",
        f"{model}.enable_gradient_checkpointing=False",
        f"+{model}.override_config.attn_implementation=sdpa",
        f"{actor}.strategy={strategy}",
        f"{actor}.optim.lr=5e-4",
        f"{actor}.ppo_mini_batch_size=8",
        f"{actor}.use_dynamic_bsz=True",
        f"{actor}.use_kl_loss=False",
        f"{actor}.use_torch_compile=False",
        f"{actor}.fsdp_config.use_torch_compile=False",
        f"{actor}.fsdp_config.dtype=float32",
        f"{rollout}.name=vllm",
        f"{rollout}.n=4",
        f"{rollout}.seed=1",
        f"{rollout}.tensor_model_parallel_size=1",
        f"{rollout}.dtype=float32",
        f"{rollout}.load_format=safetensors",
        f"{rollout}.enforce_eager=True",
        f"{rollout}.free_cache_engine=False",
        f"+{rollout}.enable_sleep_mode=False",
        f"{rollout}.max_model_len=64",
        f"{rollout}.max_num_seqs=32",
        f"{rollout}.agent.num_workers=1",
        f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes=8",
        f"{rollout}.log_prob_use_dynamic_bsz=True",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "trainer.device=cpu",
        f"hydra.run.dir={out}/hydra",
        f"trainer.n_gpus_per_node={gpus}",
        "trainer.nnodes=1",
        f"trainer.default_local_dir={out}",
        f"trainer.total_training_steps={steps}",
        "trainer.total_epochs=100",
        "trainer.test_freq=-1",
        "trainer.val_before_train=False",
        "trainer.logger=[console,file]",
        f"+{ray}.num_gpus={gpus}",
        f"{ray}.num_cpus=32",
        f"+{ray}.include_dashboard=False",
        f"+{ray}._node_ip_address=127.0.0.1",
        f"+{ray}.object_store_memory=300000000",
        f"+{ray}.runtime_env.env_vars.VERL_FILE_LOGGER_PATH={out}/metrics.jsonl",
    ]


def seeded(base: Path, folder: Path) -> list[str]:
    """Further words, with which weights alone decide what is sampled (`verl_seeded`), however many workers there are.

    The adapter to start from is given, which verl would make on its own from a seed and the number of workers, and all
    is in float32: in bfloat16 a row is rounded in another way beside other rows.

    Args:
        base: what `prepare` wrote.
        folder: where the loop's entry in verl's list is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "agent_loops.yaml"
    listed.write_text("- name: seeded\n  _target_: verl_seeded.SeededAgentLoop\n")
    agent = "actor_rollout_ref.rollout.agent"
    return [
        f"{agent}.agent_loop_config_path={listed}",
        f"{agent}.default_agent_loop=seeded",
        f"actor_rollout_ref.model.lora_adapter_path={base}/start",
        f"reward.custom_reward_function.path={HERE / 'verl_seeded.py'}",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
    ]


def start(arguments: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Begin a run of verl in a process group of its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *arguments]
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **ENVIRONMENT, **environment},
        )


def kill(running: subprocess.Popen[bytes]) -> None:
    """SIGKILL for verl's own process and all it started; Ray's own follow it."""
    import psutil

    try:
        found = [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]
    except psutil.NoSuchProcess:
        found = []
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=60)
    running.wait(60)


def run(arguments: Sequence[str], log: Path, timeout: float = 2400.0, **environment: str) -> str:
    """Run verl to its end.

    Returns:
        What it printed.
    """
    started = start(arguments, log, **environment)
    code = started.wait(timeout)
    text = log.read_text(errors="replace")
    assert code == 0, text[-6000:]
    return text


def metrics(out: Path) -> dict[int, dict[str, Any]]:
    """What verl logged, by step; of a step that was logged twice (a resumed run), the later one."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["data"] for line in lines}


def decisions(out: Path) -> list[dict[str, Any]]:
    """What nextrl decided."""
    path = out / "nextrl_decisions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]
