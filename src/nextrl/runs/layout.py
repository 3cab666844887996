"""What the files and folders that `nextrl run` and `nextrl demo` leave are called: one name, one place.

OUT/config.yaml, inputs.json    of `nextrl run`: what it is a run of
OUT/trajectory/, stopped/       its checkpoints, at saves and where it was told to stop
OUT/leaps/, final/              adapters: of leaps by a named method, and at the end
OUT/demo.json, arms/NAME/       of `nextrl demo`: what it is a demo of, and a folder for each arm
OUT/arms/NAME/record.json       an arm that is finished
OUT/result.json, report.html    of both, written last
"""

from __future__ import annotations

CONFIG = "config.yaml"
INPUTS = "inputs.json"
TRAJECTORY = "trajectory"
STOPPED = "stopped"
LEAPS = "leaps"
FINAL = "final"
DEMO = "demo.json"
ARMS = "arms"
RECORD = "record.json"
RESULT = "result.json"
REPORT = "report.html"
