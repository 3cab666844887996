"""Nested values become JSON's own types, and nested settings dotted keys."""

from __future__ import annotations

import json
import math

from nextrl.nested import dotted, json_ready


def test_numbers_that_json_lacks_become_null_at_any_depth() -> None:
    value = {10: (1.5, math.nan, [math.inf, True]), "text": "nan", "none": None}
    ready = json_ready(value)
    assert ready == {"10": [1.5, None, [None, True]], "text": "nan", "none": None}
    assert json.loads(json.dumps(ready, allow_nan=False)) == ready


def test_nested_settings_have_dotted_keys_in_order() -> None:
    settings = {"seed": 0, "train": {"lora": {"r": 8}, "steps": [1, 2]}, "empty": {}}
    assert list(dotted(settings)) == [("seed", 0), ("train.lora.r", 8), ("train.steps", [1, 2])]
