"""The table of studies/callback/README.md from the records of studies/callback/run.py.

python -m studies.callback.table
"""

from __future__ import annotations

import json

from studies.folders import records_to_read
from studies.over_seeds import mean_and_error

STEPS = (10, 20, 30, 50, 70, 100)


def main() -> None:
    """One row a rate, with and without the line."""
    raw = records_to_read("callback", __doc__)
    print("| rate | the line | seeds | " + " | ".join(map(str, STEPS)) + " |")
    print("|---|---|---|" + "---|" * len(STEPS))
    for rate in sorted(
        {
            p.name.removesuffix(".json").split("-", 1)[1].rsplit("-", 1)[0]
            for p in raw.glob("with*-seed*.json")
        },
        key=float,
    ):
        for line in ("without", "with"):
            logs = [json.loads(p.read_text())["logs"] for p in sorted(raw.glob(f"{line}-{rate}-seed*.json"))]
            if logs:
                cells = [mean_and_error([log[step // 10 - 1]["reward"] for log in logs]) for step in STEPS]
                print(f"| {rate} | {line} | {len(logs)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
