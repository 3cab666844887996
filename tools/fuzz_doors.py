"""Coverage-guided fuzzing of the doors for what others wrote, with atheris.

    pip install atheris
    python tools/fuzz_doors.py all -max_total_time=300         # an equal share of the time for each door
    python tools/fuzz_doors.py json -max_total_time=300        # or one of the others; libFuzzer's options after it

The doors: `json`, `yaml` (a config of `nextrl run`), `config` (an adapter's configuration), `header` (of a safetensors
file), `pickle` (of `torch.save`, its opcodes), `result` (a result, read and shown).

An input is either taken or refused by an `InputError` of one printable line. Anything else (another exception, more
than 10 s, more than 2 GB) ends the run with an exit code that is not 0, and libFuzzer writes the input to a file of the
working folder. Not part of `make test`: the hostile inputs there are drawn from a seed, with no library to install.
"""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import atheris
import torch

# Of the libraries, only those whose Python reads an input byte by byte: with all of torch this would take minutes.
with atheris.instrument_imports(include=["nextrl", "yaml", "json"], enable_loader_override=False):
    from nextrl.checkpoints.lora_settings import AdapterConfig
    from nextrl.checkpoints.tensorfile import TensorFile
    from nextrl.errors import LONGEST, InputError
    from nextrl.files import as_text, parse_json
    from nextrl.runs.config_file import load, parse_yaml
    from nextrl.runs.report import render
    from nextrl.runs.result import parse_result

HEADER = b'{"a.lora_A.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
CONFIG = b'{"peft_type":"LORA","r":4,"lora_alpha":8,"alpha_pattern":{"q_proj":2},"init_lora_weights":true}'
YAML = (
    b"train: {steps: 4, save_every: 2, learning_rate: 1e-3}\nseed: 1\nleap: {method: secant, at: [2]}\n",
    b"a: &a [x, *a]\nb: {<<: *a}\n? [k]\n: !!int '7'\nc: |\n  text\n",
    b"- 1:30\n- 2026-11-28\n- .nan\n- 0x1f\n- !!binary aGk=\n- ~\n",
)
RESULT = (
    b'{"version":2,"seed":0,"task":"chain","target":null,"verdict":"v","arms":{"run":{"label":"a","kind":"plain",'
    b'"steps":[0,2],"accuracy":[0.1,0.2],"se":[0.1,0.1],"greedy":[0,1],"completions":[0,8],"seconds":[0,1],'
    b'"learning_rate":[0.1,0.1]}},"leaps":{},"costs":{},"saved":{},"regime":{},"trajectory":{}}'
)


def _saved(value: object) -> bytes:
    """The opcodes that `torch.save` writes for a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


# Good texts for each door, for the fuzzer to begin with.
SEEDS: dict[str, tuple[bytes, ...]] = {
    "json": (CONFIG, HEADER, b'[1.5e3, -0, "\\ud83d\\ude00", null, {"": [[[]]]}]', b"\xef\xbb\xbf{}"),
    "yaml": YAML,
    "config": (CONFIG,),
    "header": (HEADER,),
    "pickle": (_saved({"a": torch.zeros(2)}), _saved({"param_groups": [{"betas": (0.9, 0.99)}]})),
    "result": (RESULT,),
}


def _yaml(place: Path) -> Callable[[bytes], None]:
    path = place / "c.yaml"

    def read(data: bytes) -> None:
        parse_yaml(as_text(data, "file.yaml"), "file.yaml")
        path.write_bytes(data)
        load(path).as_yaml()

    return read


def _config(data: bytes) -> None:
    raw = parse_json(data, "adapter_config.json")
    if isinstance(raw, dict):
        config = AdapterConfig.of(raw, Path("adapter_config.json"))
        config.check_patterns(["model.layers.0.q_proj"])
        config.scaling("model.layers.0.q_proj")


def _read_all(path: Path) -> None:
    file = TensorFile(path, allow_pickle=True)
    for name in file.entries:
        file.get(name)


def _header(path: Path) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        path.write_bytes(struct.pack("<Q", len(data)) + data + b"\0" * 8)
        _read_all(path)

    return read


def _pickle(path: Path) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/data/0", b"\0" * 8)
            archive.writestr("archive/version", b"3\n")
        _read_all(path)

    return read


def _result(data: bytes) -> None:
    raw = parse_json(data, "result.json")
    if isinstance(raw, dict):
        render(parse_result(raw))


def _share(options: list[str]) -> list[str]:
    """The options with each door's share of the time."""

    def part(found: re.Match[str]) -> str:
        return f"{found[1]}{max(1, int(found[2]) // len(SEEDS))}"

    return [re.sub(r"^(-max_total_time=)(\d+)$", part, option) for option in options]


def main() -> None:
    """Fuzz one door, named by the first argument, or each in turn."""
    door = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if door == "all":
        codes = [
            subprocess.run([sys.executable, __file__, name, *_share(sys.argv[1:])], check=False).returncode
            for name in SEEDS
        ]
        sys.exit(max(map(abs, codes)))
    if door not in SEEDS:
        sys.exit(__doc__)
    # In memory where there is such a place: the file is written for every input.
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    (place / "corpus").mkdir()
    for i, seed in enumerate(SEEDS[door]):
        (place / "corpus" / str(i)).write_bytes(seed)
    doors: dict[str, Callable[[bytes], object]] = {
        "json": lambda data: parse_json(data, "file.json"),
        "yaml": _yaml(place),
        "config": _config,
        "header": _header(place / "x.safetensors"),
        "pickle": _pickle(place / "x.bin"),
        "result": _result,
    }

    def one(data: bytes) -> None:
        try:
            doors[door](data)
        except InputError as error:
            text = str(error)
            assert text.isprintable(), text
            assert 0 < len(text) <= LONGEST + 10, text

    atheris.Setup(
        [sys.argv[0], "-timeout=10", "-rss_limit_mb=2048", *sys.argv[1:], str(place / "corpus")], one
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
