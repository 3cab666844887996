"""One process's part of `test_ranks.py`: short runs, whose every step is written to a file for the test to compare.

    accelerate launch --multi_gpu --num_processes 2 tests/two_processes.py OUT      # gloo, on CPUs

TRL draws other completions on each process than one process would draw for the same rows. To compare runs all the
same, `draw_by_row` makes a completion depend on its prompt, its number among that prompt's completions and the step
alone: the same inverse-CDF draws wherever the row is processed.
"""

from __future__ import annotations

import shutil
import sys
import time
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from nextrl.engines import memory
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.policies import Auto
from nextrl.engines.trl.callback import LeapCallback
from nextrl.judge.controller import Controller
from nextrl.judge.controller_config import ControllerConfig
from nextrl.runs.config import RunConfig
from nextrl.runs.run import run
from nextrl.tasks.bases import tiny
from trl_runs import VALIDATION, Scripted, fresh_model, scripted_policy, trainable, trainer

STEPS, COMPLETIONS, PROMPTS = 6, 32, 20  # five groups of four do not divide by two: one is repeated to fill


class Leaps(Scripted):
    """Searches in every window, leaps ahead in the first and back in the second."""

    def __init__(self) -> None:
        super().__init__([(2.0, 3.0), (-0.5, 0.5)])

    def choose(self, window: Any, score: Any) -> Any:
        self.scores.append({a: score(a, 0, PROMPTS) for a in (0.0, 2.0)})
        return super().choose(window, lambda *_: None)


def draw_by_row(built: Any) -> None:
    """Replace a trainer's sampling (see above)."""

    def uniforms(prompt: list[int], number: int) -> torch.Tensor:
        key = zlib.crc32(repr((prompt, number, built.state.global_step)).encode())
        return torch.rand(built.args.max_completion_length, generator=torch.Generator().manual_seed(key))

    @torch.no_grad()
    def generate(prompts: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        seen: Counter[tuple[int, ...]] = Counter()
        draws = []
        for prompt in prompts:
            draws.append(uniforms(list(prompt), seen[tuple(prompt)]))
            seen[tuple(prompt)] += 1
        ids, u = torch.tensor(prompts), torch.stack(draws)
        for position in range(u.shape[1]):
            p = built.model(input_ids=ids).logits[:, -1].double().softmax(-1)
            token = (p.cumsum(-1) < u[:, position, None]).sum(-1, keepdim=True).clamp(max=p.shape[-1] - 1)
            ids = torch.cat([ids, token], 1)
        end = built.processing_class.eos_token_id
        completions = [row[len(prompts[0]) :] for row in ids.tolist()]
        return [c[: c.index(end) + 1] if end in c else c for c in completions], None

    built._generate_single_turn = generate


class Watch(TrainerCallback):
    """What is trained after each step, callbacks included."""

    def __init__(self) -> None:
        self.adapters: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.adapters.append(trainable(kwargs["model"]))


def scripted_run(out: Path, processes: int) -> dict[str, Any]:
    """Six steps with two leaps; on one process, the other's half is a second step of gradient accumulation."""
    controller, watch = Leaps(), Watch()
    leaps = LeapCallback(policy=scripted_policy(controller, prompts=PROMPTS), validation=VALIDATION)
    built = trainer(
        out,
        [leaps, watch],
        max_steps=STEPS,
        per_device_train_batch_size=COMPLETIONS // 2,
        gradient_accumulation_steps=2 // processes,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=2,
    )
    draw_by_row(built)
    before = trainable(built.model)
    built.train()
    return {
        "before": before,
        "adapters": watch.adapters,
        "rewards": [h["reward"] for h in built.state.log_history if "reward" in h],
        "scores": [{a: r.tolist() for a, r in s.items()} for s in controller.scores],
        "completions": leaps.costs.search_completions,
        "decisions": [d.model_dump(mode="json") for d in leaps.decisions],
        "windows": len(controller.windows),
    }


class Deciding(Controller):
    """The real controller, which says so when it is asked."""

    asked = 0

    def window(self, *arguments: Any) -> Any:
        Deciding.asked += 1
        return super().window(*arguments)


def real_run(out: Path, *, whole: bool = False) -> dict[str, Any]:
    """TRL's own sampling, the real controller; on an adapter, or on all weights."""
    Deciding.asked = 0
    policy = Auto(ControllerConfig(every=2), Deciding)
    watch, leaps = Watch(), LeapCallback(policy=policy)
    rate, model = (1e-5, tiny.load("chain")[0]) if whole else (1e-3, None)
    options = {"max_steps": 5, "per_device_train_batch_size": 16, "learning_rate": rate}
    built = trainer(out, [leaps, watch], model=model, **options)
    built.train()
    return {
        "adapters": watch.adapters,
        "decisions": [d.model_dump(mode="json") for d in leaps.decisions],
        "asked": Deciding.asked,
        "controller": policy.state(),
    }


def fsdp2() -> dict[str, Any]:
    """A leap in an adapter that lies in halves on the two processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = fresh_model()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    live = LiveAdapter(model)
    before = live.read()
    live.write({name: 2.0 * t + 1.0 for name, t in before.items()})
    local = sum(p.to_local().numel() for p in live.parameters.values())
    return {"before": before, "after": live.read(), "local": local}


def whole_run(out: Path) -> dict[str, Any]:
    """`nextrl run` with a leap; then again from its step 4, as if it had been killed after that checkpoint."""
    config = RunConfig(
        output_dir=out,
        train={
            "steps": 6,
            "save_every": 2,
            "prompts_per_step": 4,
            "completions_per_prompt": 4,
            "learning_rate": 1e-3,
        },
        leap={"method": "secant", "at": [4], "horizon": 2, "alpha": 1.0},
        eval={"every": 6, "prompts": 10},
    )
    ends = []
    for again in (False, True):
        outcome = run(config)
        torch.distributed.barrier()
        ends.append(load_file(out / "final/adapter_model.safetensors"))
        if not again:
            listed = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
            torch.distributed.barrier()
            if torch.distributed.get_rank() == 0:
                for gone in ("final", "trajectory/checkpoint-6"):
                    shutil.rmtree(out / gone)
                (out / "result.json").unlink()
            torch.distributed.barrier()
    return {
        "ends": ends,
        "listed": listed,
        "result": outcome.result and outcome.result.as_dict(),
        "step": outcome.step,
    }


class Killed(LeapCallback):
    """Dies when the trainer has written its own files of step 4, and before the memory is among them."""

    def deliver(self, args: Any, state: Any) -> None:
        torch.distributed.barrier()
        if state.global_step == 4:
            raise KeyboardInterrupt
        super().deliver(args, state)


def killed_run(out: Path) -> dict[str, Any]:
    """A run, one that is killed while it saves, and that one resumed with a second process whose disk is slow."""

    def built(folder: Path, callback: LeapCallback) -> Any:
        options = {"max_steps": 6, "per_device_train_batch_size": 16, "learning_rate": 1e-3}
        return trainer(folder, [callback], **options, save_strategy="steps", save_steps=4)

    whole = LeapCallback(2)
    unbroken = built(out / "whole", whole)
    unbroken.train()
    with suppress(KeyboardInterrupt):
        built(out / "killed", Killed(2)).train()
    read, rank = memory.read, torch.distributed.get_rank()

    def late(*arguments: Any) -> Any:
        time.sleep(rank)
        return read(*arguments)

    memory.read, again = late, LeapCallback(2)
    resumed = built(out / "killed", again)
    resumed.train(resume_from_checkpoint=str(out / "killed/checkpoint-4"))
    memory.read = read
    return {
        "ends": [trainable(unbroken.model), trainable(resumed.model)],
        "decisions": [[d.model_dump(mode="json") for d in one.decisions] for one in (whole, again)],
    }


def main() -> None:
    """Everything, one file a process."""
    import os

    torch.set_num_threads(1)
    out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    # A folder of its own for each process shows who writes what.
    found = {
        "scripted": scripted_run(out / f"scripted-{rank}", 2),
        "real": real_run(out / f"real-{rank}"),
        "whole": real_run(out / f"whole-{rank}", whole=True),
        "fsdp2": fsdp2(),
        "run": whole_run(out / "run"),
        "killed": killed_run(out / "killed"),
    }
    torch.save(found, out / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
