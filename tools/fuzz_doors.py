"""Coverage-guided fuzzing of the doors for JSON, YAML, an adapter's config and a safetensors header, with atheris.

    pip install atheris
    python tools/fuzz_doors.py json -max_total_time=300        # or yaml, config, header; libFuzzer's options after it

An input is either taken or refused by an `InputError` of one printable line. Anything else (another exception, a long
wait, much memory) ends the run, and libFuzzer writes the input to a file. Not part of `make test`: the hostile inputs
there are drawn from a seed, with no library to install.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nextrl", "yaml", "json"], enable_loader_override=False):
    from nextrl.checkpoints.lora_settings import AdapterConfig
    from nextrl.checkpoints.tensorfile import TensorFile
    from nextrl.errors import LONGEST, InputError
    from nextrl.files import as_text, parse_json
    from nextrl.runs.config_file import parse_yaml

HEADER = b'{"a.lora_A.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
CONFIG = b'{"peft_type":"LORA","r":4,"lora_alpha":8,"alpha_pattern":{"q_proj":2},"init_lora_weights":true}'
# One good text for each door, for the fuzzer to begin with.
SEEDS = {
    "json": CONFIG,
    "yaml": b"train: {steps: 4, rate: 1e-3}\nseed: [1, 2]\nname: 'a'\n",
    "config": CONFIG,
    "header": HEADER,
}


def _config(data: bytes) -> None:
    raw = parse_json(data, "adapter_config.json")
    if isinstance(raw, dict):
        config = AdapterConfig.of(raw, Path("adapter_config.json"))
        config.check_patterns(["model.layers.0.q_proj"])
        config.scaling("model.layers.0.q_proj")


def _header(path: Path) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        path.write_bytes(struct.pack("<Q", len(data)) + data + b"\0" * 8)
        file = TensorFile(path)
        for name in file.entries:
            file.get(name)

    return read


def main() -> None:
    """Fuzz one door, named by the first argument."""
    door = sys.argv.pop(1) if len(sys.argv) > 1 and sys.argv[1] in SEEDS else sys.exit(__doc__)
    # In memory where there is such a place: the file is written for every input.
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    (place / "corpus").mkdir()
    (place / "corpus" / "seed").write_bytes(SEEDS[door])
    doors: dict[str, Callable[[bytes], object]] = {
        "json": lambda data: parse_json(data, "file.json"),
        "yaml": lambda data: parse_yaml(as_text(data, "file.yaml"), "file.yaml"),
        "config": _config,
        "header": _header(place / "x.safetensors"),
    }

    def one(data: bytes) -> None:
        try:
            doors[door](data)
        except InputError as error:
            text = str(error)
            assert text.isprintable(), text
            assert 0 < len(text) <= LONGEST + 10, text

    atheris.Setup([*sys.argv, str(place / "corpus")], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
