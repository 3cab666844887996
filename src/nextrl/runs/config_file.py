"""A config from a YAML file and `key=value` overrides; bad input is one line with the nearest name that is known."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nextrl.errors import InputError
from nextrl.runs.config import LIFTED, SECTIONS, RunConfig, known_keys


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config.

    Args:
        path: a YAML file.
        overrides: `key=value` each, the key dotted (`train.learning_rate=1e-4`), the value as YAML.

    Raises:
        InputError: the file or an override cannot be used.
    """
    data = _read(path)
    sources: dict[str, str] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"'{override}' is no key=value, as in train.learning_rate=1e-4")
        try:
            _put(data, key.split("."), yaml.safe_load(text))
        except (yaml.YAMLError, TypeError) as error:
            raise InputError(f"{override}: {' '.join(str(error).split())}") from error
        sources[key] = override
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise InputError(_one_line(error, str(path), sources)) from error


class _NoDuplicates(yaml.SafeLoader):
    """YAML's safe loader, except that a key written twice is an error and not silently the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(None, None, f"{key} is there twice", key_node.start_mark)
            seen.add(str(key))
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _NoDuplicates)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InputError(f"{path} must hold keys and values, as in examples/tiny.yaml")
    return data


def _put(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        if data.get(key) is None:
            data[key] = {}
        data = data[key]
        if not isinstance(data, dict):
            raise TypeError(f"{key} holds a value, not keys")
    data[keys[-1]] = value


def _one_line(error: ValidationError, path: str, sources: Mapping[str, str]) -> str:
    # What is lifted from the top is wrong in both places: once is enough.
    found = [e for e in error.errors() if e["loc"] not in [("train", key) for key in LIFTED]]
    first, more = (found or error.errors())[0], max(0, len(found) - 1)
    # Parts of `loc` that name no key are positions in a list or members of a union.
    names = known_keys()
    key, where = "", ".".join(str(part) for part in first["loc"])
    for part in first["loc"]:
        longer = f"{key}.{part}" if key else str(part)
        if longer in names or longer in SECTIONS or first["type"] == "extra_forbidden":
            key = longer
    source = sources.get(key, path)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, names, 1, 0.5) or [
            n for n in names if n.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]
        ]
        hint = f"did you mean {near[0]}?" if near else "nextrl run --print-config lists every key"
        message = f"{source}: {key} is no key of a config; {hint}"
    elif first["type"] == "value_error" and not where:
        message = f"{source}: {first['msg'].removeprefix('Value error, ')}"
    else:
        said = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        message = f"{source}: {key or where} {said}, not {first['input']!r}"
        if first["type"] == "value_error":
            message = f"{source}: {key or where}: {said}"
    return message + (f" (and {more} more)" if more else "")
