"""What `advise` measures at steps 50 and 100 of every plain run of the grid, and where each run ended.

    python -m studies.race.run             # the runs that are measured
    python -m studies.advice.measure       # a few minutes
    python -m studies.advice.table         # of the published records, or of the folder named

The features are plain numbers, so the rule can be tried and calibrated without the checkpoints, which stay out of git.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nextrl import Trajectory
from nextrl.judge.advice_features import features
from studies.folders import default_out, parser

STEPS = (50, 100)


def rounded(value: Any) -> Any:
    """Floats to five digits, infinities as text, so that a diff of two measurements can be read."""
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def main() -> None:
    """One JSON file a task: a list of runs."""
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=Path, default=default_out("race") / "runs")
    arguments.add_argument("--out", type=Path, default=default_out("advice"))
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = arguments.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for task in sorted(p for p in options.runs.iterdir() if p.is_dir()):
        rows = []
        for path in sorted(task.glob("plain-*/seed-*/record.json")):
            rate, seed = float(path.parent.parent.name[6:]), int(path.parent.name[5:])
            if seed not in options.seeds:
                continue
            record, whole = json.loads(path.read_text()), Trajectory.load(path.parent)
            measured = {str(t): rounded(asdict(features(whole.upto(t)))) for t in STEPS}
            accuracy = dict(zip(map(str, record["steps"]), record["accuracy"], strict=True))
            rows.append({"rate": rate, "seed": seed, "accuracy": accuracy, "features": measured})
            print(path.parent, flush=True)
        text = ",\n".join(json.dumps(row) for row in rows)
        (options.out / f"{task.name}.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
