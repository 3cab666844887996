"""A stranger's GRPO script with and without the one added line: reward curves over rates and seeds.

    python studies/callback/run.py [--rates 2e-5,1e-3,1e-2] [--seeds 0,1,2] [--only with|without]

Runs examples/grpo_with_leaps.py as a user would, one run after the other, and keeps of each what its trainer logs
(every 10 steps) in studies/callback/raw/; a run that is there already is left out.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "grpo_with_leaps.py"
KEPT = ("reward", "reward_std", "learning_rate")


def run(rate: str, seed: int, with_line: bool) -> dict[str, object]:
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", default="2e-5,1e-3,1e-2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", choices=("with", "without"))
    options = parser.parse_args()
    for seed in (int(s) for s in options.seeds.split(",")):
        for rate in options.rates.split(","):
            for name in [options.only] if options.only else ["without", "with"]:
                out = HERE / "raw" / f"{name}-{rate}-seed{seed}.json"
                if out.is_file():
                    continue
                result = run(rate, seed, name == "with")
                out.write_text(json.dumps(result, indent=1) + "\n")
                print(out.name, " ".join(f"{row['reward']:.3f}" for row in result["logs"]), flush=True)


if __name__ == "__main__":
    main()
