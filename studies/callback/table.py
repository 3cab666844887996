"""The table of docs/callback.md from the records of studies/callback/run.py.

python studies/callback/table.py
"""

from __future__ import annotations

import json
from pathlib import Path

from nextrl.over_seeds import mean_and_error

RAW = Path(__file__).parent / "raw"
STEPS = (10, 20, 30, 50, 70, 100)


def main() -> None:
    """One row a rate, with and without the line."""
    print("| rate | the line | seeds | " + " | ".join(map(str, STEPS)) + " |")
    print("|---|---|---|" + "---|" * len(STEPS))
    for rate in sorted(
        {
            p.name.removesuffix(".json").split("-", 1)[1].rsplit("-", 1)[0]
            for p in RAW.glob("with*-seed*.json")
        },
        key=float,
    ):
        for line in ("without", "with"):
            logs = [json.loads(p.read_text())["logs"] for p in sorted(RAW.glob(f"{line}-{rate}-seed*.json"))]
            if logs:
                cells = [mean_and_error([log[step // 10 - 1]["reward"] for log in logs]) for step in STEPS]
                print(f"| {rate} | {line} | {len(logs)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
