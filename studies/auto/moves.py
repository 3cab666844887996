"""How far single optimizer steps move the policy, from rates far too low to far too high: six toy tasks, two models.

    python -m studies.auto.moves                        # the six tasks, some four minutes of one core
    python -m studies.auto.moves --of smollm2 gemma3    # two real models (studies/gemma3 says what to install)
    python -m studies.auto.moves --table                # of the published records

Plain runs, one seed; nats per token as `auto` measures them, on a step's own completions. One JSON record for each run;
a second call goes on with what is missing.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nextrl import LeapCallback
from nextrl.engines.policies import Auto
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.trl.shared_prefix import share_prefixes
from nextrl.engines.trl.trainer import build_trainer, with_adapter
from nextrl.judge.controller import Controller, Look
from nextrl.judge.decision import Decision, stay
from nextrl.judge.window import Window
from nextrl.runs.loop import one_thread
from nextrl.tasks import base, bases
from studies.folders import default_out, parser, published
from studies.grid import tasks as own
from studies.grid.run import LAB, OWN
from studies.smollm2.run import SUMS

STEPS = (1, 2, 3, 4, 8, 16, 32)
TOYS, TOY_RATES, TOY_SEED = (*LAB, *OWN), (2e-4, 1e-3, 2e-3, 5e-3, 2e-2), 10
MODELS = {"smollm2": (1e-5, 1e-4, 3e-4, 1e-3), "gemma3": (1e-5, 1e-4, 3e-4)}


class Moves(Controller):
    """Measures steps, and does nothing.

    Attributes:
        seen: step -> nats per token.
    """

    def __init__(self, *args: object) -> None:
        super().__init__()
        self.seen: dict[int, float] = {}

    def checks(self, step: int) -> bool:
        return step in STEPS

    def step(
        self, step: int, moved: float, share: float = 1.0, resolution: float = 0.0, left: float = math.inf
    ) -> Decision | None:
        self.seen[step] = moved
        return None

    def cooled(self, step: int, steps: int) -> float:
        return 1.0

    def window(self, window: Window, look: Look) -> Decision:
        return stay("never judged")


def model_of(name: str) -> tuple[str, str]:
    """Name of the model as `bases.load` takes it, and of the task."""
    if name == "gemma3":
        from studies.gemma3.run import base as gemma3  # its package is asked for only here

        return str(gemma3()), SUMS
    if name == "smollm2":
        return "smollm2-135m", SUMS
    return (own.MODEL if name in OWN else "tiny"), name


def measure(name: str, rate: float, steps: int) -> dict[int, float]:
    """Step -> nats per token of one plain run."""
    place, task = model_of(name)
    model, tokenizer = bases.load(place, task)
    if real := name in MODELS:
        share_prefixes(model)
    seed = 0 if real else TOY_SEED
    sizes = {"prompts_per_step": 8, "completions_per_prompt": 8} if real else {}
    train = TrainSettings(steps=steps, learning_rate=rate, seed=seed, share_prefixes=real, **sizes)
    policy = Auto(controller=Moves)
    with tempfile.TemporaryDirectory() as scratch:
        adapted = with_adapter(model, LoraSettings(), seed)
        callbacks = [LeapCallback(policy=policy)]
        build_trainer(
            adapted, tokenizer, base.get(task), train, Path(scratch), save=False, callbacks=callbacks
        ).train()
    controller = policy.controller
    assert isinstance(controller, Moves)
    return controller.seen


def rows(folder: Path) -> Iterator[str]:
    """The table of docs/auto-evidence.md."""
    yield "| task or model | rate | " + " | ".join(f"step {step}" for step in STEPS) + " |"
    yield "|---|---|" + "---|" * len(STEPS)
    for name in (*TOYS, *MODELS):
        for rate in MODELS.get(name, TOY_RATES):
            path = folder / name / f"{rate:g}.json"
            if path.is_file():
                seen = json.loads(path.read_text())
                cells = [f"{seen[str(step)]:.2g}" if str(step) in seen else "-" for step in STEPS]
                yield f"| {name} | {rate:g} | " + " | ".join(cells) + " |"


def main() -> None:
    """Run what is missing, or print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--of", nargs="+", choices=(*TOYS, *MODELS), default=list(TOYS))
    arguments.add_argument("--steps", type=int, default=max(STEPS))
    arguments.add_argument("--out", type=Path, default=default_out("auto") / "moves", help="records")
    arguments.add_argument("--table", action="store_true", help="of the published records, and nothing else")
    options = arguments.parse_args()
    if options.table:
        print("\n".join(rows(published("auto") / "moves")))
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    one_thread()
    for name in options.of:
        for rate in MODELS.get(name, TOY_RATES):
            path = options.out / name / f"{rate:g}.json"
            if not path.is_file():
                seen = measure(name, rate, options.steps)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(seen) + "\n")
                print(name, rate, {step: f"{nats:.2g}" for step, nats in seen.items()}, flush=True)


if __name__ == "__main__":
    main()
