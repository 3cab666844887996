"""A stranger's GRPO script with and without the one added line: reward curves over rates and seeds.

    python -m studies.callback.run [--rates 2e-5,1e-3,1e-2] [--seeds 0,1,2] [--only with|without] [--out DIR]

Runs examples/grpo_with_leaps.py as a user would, one run after the other, and keeps what each run's trainer logs
(every 10 steps) in one JSON file. A run whose file is there already is left out.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

from studies.folders import STUDIES, default_out, parser

EXAMPLE = STUDIES.parent / "examples" / "grpo_with_leaps.py"
KEPT = ("reward", "reward_std", "learning_rate")


def run(rate: str, seed: int, with_line: bool) -> dict[str, object]:
    """One run of the example in a process of its own: settings, seconds and logged rows."""
    command = [sys.executable, str(EXAMPLE), "--learning-rate", rate, "--seed", str(seed)]
    began = time.time()
    output = subprocess.run(
        [*command, *([] if with_line else ["--without"])], check=True, capture_output=True, text=True
    ).stdout
    rows = [ast.literal_eval(line) for line in output.splitlines() if line.startswith("{'")]
    logs = [
        {k: float(v) for k, v in row.items() if k in KEPT or k.startswith("leap/")}
        for row in rows
        if "reward" in row
    ]
    return {
        "learning_rate": float(rate),
        "seed": seed,
        "with": with_line,
        "seconds": round(time.time() - began, 1),
        "logs": logs,
    }


def main() -> None:
    """Run what is missing, one run after the other."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=default_out("callback"))
    arguments.add_argument("--rates", default="2e-5,1e-3,1e-2")
    arguments.add_argument("--seeds", default="0,1,2")
    arguments.add_argument("--only", choices=("with", "without"))
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in (int(s) for s in options.seeds.split(",")):
        for rate in options.rates.split(","):
            for name in [options.only] if options.only else ["without", "with"]:
                out = options.out / f"{name}-{rate}-seed{seed}.json"
                if out.is_file():
                    continue
                result = run(rate, seed, name == "with")
                out.write_text(json.dumps(result, indent=1) + "\n")
                print(out.name, " ".join(f"{row['reward']:.3f}" for row in result["logs"]), flush=True)


if __name__ == "__main__":
    main()
