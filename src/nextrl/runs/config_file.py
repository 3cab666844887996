"""A config from a YAML file and `key=value` overrides; bad input is one line with the nearest name that is known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nextrl.errors import InputError, shown
from nextrl.files import MAX_DEPTH, encodable, read_text
from nextrl.nested import dotted
from nextrl.registry import did_you_mean
from nextrl.runs.config import LIFTED, SECTIONS, WHOLE_EXPONENT, RunConfig, known_keys

_MAX_BYTES = 2**16  # of a config, with 4 kB the longest there is; PyYAML reads this much in a second
_LARGEST = 10**15


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
            _put(data, key.split("."), parse_yaml(text, shown(override)))
        except TypeError as error:
            raise InputError(f"{override}: {error}") from error
        sources[key] = override
    _refuse_truth_values(data, str(path), sources)
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise InputError(_one_line(error, str(path), sources)) from error


def _refuse_truth_values(data: Mapping[str, Any], path: str, sources: Mapping[str, str]) -> None:
    """`true` where a number belongs: pydantic would take it for 1.

    Raises:
        InputError: there is one.
    """
    known = known_keys()
    for key, value in dotted(data):
        field = known.get(key)
        if isinstance(value, bool) and field is not None and "bool" not in str(field.annotation):
            raise InputError(f"{sources.get(key, path)}: {key} must be a value, not {str(value).lower()}")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with bounds, and with a key that is written twice an error and not silently the last one."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        # The scanner looks at every open bracket again at every token.
        if self.flow_level >= MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")
        if self.check_event(yaml.AliasEvent):
            # Aliases of aliases make a file of 300 bytes stand for 10^9 values; no config needs one.
            raise yaml.YAMLError("an alias (*name): write the value out")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(None, None, f"{key} is there twice", key_node.start_mark)
            seen.add(str(key))
        return super().construct_mapping(node, deep)


class _OddNumberError(ValueError):
    """A number that YAML 1.1 reads otherwise than people do."""


def _integer(loader: _Loader, node: Any) -> int:
    text = str(node.value)
    if ":" in text or re.fullmatch(r"[-+]?0[0-9_]+", text):
        value = loader.construct_yaml_int(node)
        raise _OddNumberError(
            f"{text} is {value} in YAML; write {value} if that is meant, or quotes around a name"
        )
    return int(loader.construct_yaml_int(node))


def _real(loader: _Loader, node: Any) -> float:
    if ":" in str(node.value):
        raise _OddNumberError(f"{node.value} is a number to the base 60 in YAML; write it out, or in quotes")
    return float(loader.construct_yaml_float(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _real)
# YAML 1.1 takes 1e3 for text.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", WHOLE_EXPONENT, list("-+0123456789"))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text: what JSON could hold, and nothing longer or deeper than a config is.

    Args:
        where: for messages.

    Raises:
        InputError: it is no YAML, is too deep, has aliases, or a value that is no text, truth value or sane number.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML: {error}") from None
    except _OddNumberError as error:
        raise InputError(f"{where}: {error}") from None
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        # PyYAML's constructors, given `!!int ""`, `!!timestamp x` or a date that no calendar has.
        raise InputError(f"{where} is not YAML: {error}") from None
    _check(value, where)
    return value


def _check(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check(key, where)
            _check(item, where)
    elif isinstance(value, list):
        for item in value:
            _check(item, where)
    elif isinstance(value, str):
        if "\0" in value or not encodable(value):
            raise InputError(f"{where}: {shown(value)} holds NUL or half a surrogate pair, which is no text")
    elif isinstance(value, int):
        if abs(value) > _LARGEST:
            raise InputError(
                f"{where}: {shown(value)} is larger than any number in a config ({_LARGEST:.0e})"
            )
    elif value is not None and not isinstance(value, float):
        raise InputError(f"{where}: {shown(value)} is neither text nor a number; put it in quotes")


def _read(path: Path) -> dict[str, Any]:
    data = parse_yaml(read_text(path, _MAX_BYTES), str(path))
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
        # A key of another section is not near where that section's name is long.
        elsewhere = next((n for n in names if n.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]), "")
        otherwise = did_you_mean(elsewhere, names, "nextrl run --print-config lists every key")
        message = f"{source}: {key} is no key of a config; {did_you_mean(key, names, otherwise)}"
    elif first["type"] == "value_error" and not where:
        message = f"{source}: {first['msg'].removeprefix('Value error, ')}"
    else:
        said = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        message = f"{source}: {key or where} {said}, not {shown(first['input'])}"
        if first["type"] == "value_error":
            message = f"{source}: {key or where}: {said}"
    return message + (f" (and {more} more)" if more else "")
