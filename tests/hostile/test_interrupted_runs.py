"""A run on a full disk, with its clock set back, or with a report of hostile names: to the bit, or one line.

Kills are in tests/studies/test_killed_runs.py; damaged files, signals, two processes and changed configs in
tests/runs/test_run.py.
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hostile_inputs as hostile
from nextrl.errors import InputError
from nextrl.runs.config import RunConfig
from nextrl.runs.report import render
from nextrl.runs.result import parse_result
from nextrl.runs.run import run
from synthetic_result import synthetic_result

SMALL: dict[str, Any] = {
    "train": {
        "steps": 4,
        "save_every": 2,
        "learning_rate": 5e-4,
        "prompts_per_step": 4,
        "completions_per_prompt": 4,
    },
    "lora": {"r": 4, "alpha": 8},
    "eval": {"every": 2, "prompts": 20},
    "leap": {"method": "auto", "every": 2},
}


def config(out: Path) -> RunConfig:
    return RunConfig(**SMALL, output_dir=out)


def adapter(out: Path) -> bytes:
    return (out / "final" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    run(config(out))
    return out


def stopping_at(step: int) -> tuple[Callable[[], bool], Callable[[str, int], None]]:
    seen = {"step": 0}
    return lambda: seen["step"] >= step, lambda name, at: seen.update(step=at)


def sizes(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in (out / "trajectory" / "checkpoint-2").iterdir()}


@pytest.mark.parametrize(
    "name", ["config.yaml", "adapter_config.json", "adapter_model.safetensors", "optimizer.pt"]
)
def test_where_a_file_no_longer_fits_the_run_says_so_and_goes_on_later(
    whole: Path, tmp_path: Path, name: str
) -> None:
    """The system refuses each byte beyond a size, as a full disk would: one size for each kind of writer."""
    limit = 300 if name == "config.yaml" else sizes(whole)[name] - 10

    def on_a_full_disk() -> dict[str, Any]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            run(config(tmp_path / "out"))
        except InputError as error:
            return {"said": str(error)}
        return {"said": None}

    found = hostile.in_child(on_a_full_disk, 120, 4 * hostile.MEMORY)
    assert found.get("said"), found
    assert hostile.complaint(found["said"]) is None
    assert "cannot be written" in found["said"]
    if name == "config.yaml":
        assert not (tmp_path / "out" / "config.yaml").exists()
    run(config(tmp_path / "out"))
    assert adapter(tmp_path / "out") == adapter(whole)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in whole.iterdir()}


def test_a_clock_that_was_set_back_changes_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    asked, progress = stopping_at(2)
    run(config(out), stop_asked=asked, progress=progress)
    later = time.time() + 3600
    for file in out.rglob("*"):
        os.utime(file, (later, later))
    now, counter = time.time, time.perf_counter
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    monkeypatch.setattr(time, "perf_counter", lambda: counter() - 3600)  # as after a restart of the machine
    lines: list[str] = []
    result = run(config(out), say=lines.append).result
    assert lines == ["going on from step 2 of 4"]
    assert adapter(out) == adapter(whole)
    assert result is not None
    seconds = [s for s in result.arms["run"].seconds if s is not None]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[-1] < 600


def test_a_file_of_the_newest_checkpoint_that_is_none_any_more_is_seen(whole: Path, tmp_path: Path) -> None:
    """Each file in turn, missing, cut, doubled, or a folder, a pipe or a device in its place."""
    begun = tmp_path / "begun"
    asked, progress = stopping_at(2)
    run(config(begun), stop_asked=asked, progress=progress)
    names = sorted(file.name for file in (begun / "trajectory" / "checkpoint-2").iterdir())
    assert len(names) > 6
    for name, kind in zip(names, itertools.cycle(("missing", "pipe", "cut", "folder", "/dev/zero", "twice"))):
        out = hostile.fresh(begun, tmp_path / "out")
        hostile.replace(out / "trajectory" / "checkpoint-2" / name, kind)
        lines: list[str] = []
        stop_asked, progress = stopping_at(1)
        run(config(out), say=lines.append, stop_asked=stop_asked, progress=progress)
        assert lines[1:] == ["no whole checkpoint was left: starting again from step 0"], (name, kind, lines)
        assert "checkpoint 2 is incomplete or damaged" in lines[0]
        assert name in lines[0] or "nextrl_checkpoint.json" in lines[0]


BAD = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<svg onload=\"document.title='owned'\">"
)


def hostile_page() -> str:
    """A page of a result with tags in every text and name that it can hold."""
    keys = _keys(synthetic_result())

    def everywhere(value: Any) -> Any:
        if isinstance(value, dict):
            return {key if key in keys else key + BAD: everywhere(item) for key, item in value.items()}
        if isinstance(value, list):
            return [everywhere(item) for item in value]
        return value + BAD if isinstance(value, str) else value

    return render(parse_result(everywhere(synthetic_result())))


def test_a_page_of_hostile_names_has_no_tag_of_theirs() -> None:
    page = hostile_page()
    assert page.count("owned") > 10
    for tag in ("<script>document", "<img src=x", "<svg onload"):
        assert tag not in page
    assert page.count("</script>") == render(parse_result(synthetic_result())).count("</script>")


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


def title(page: Path, profile: Path) -> str:
    """The title that a page has once a real browser has run it."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-sync", "--disable-component-update", f"--user-data-dir={profile}", "--dump-dom"]
    try:
        done = subprocess.run(
            [*command, page.as_uri()], capture_output=True, text=True, timeout=90, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the browser takes too long here")
    found = re.search("<title>(.*?)</title>", done.stdout, re.DOTALL)
    if found is None:
        pytest.skip("the browser does not start here")
    return found[1]


@pytest.mark.skipif(BROWSER is None, reason="no headless browser")
def test_a_browser_runs_nothing_of_theirs(tmp_path: Path) -> None:
    safe, open_ = tmp_path / "report.html", tmp_path / "open.html"
    safe.write_text(hostile_page(), encoding="utf-8")
    open_.write_text(f"<html><title>mine</title><body><script>1{BAD}</body></html>", encoding="utf-8")
    assert title(open_, tmp_path / "a") == "owned"  # a page that does not escape is caught
    assert title(safe, tmp_path / "b") != "owned"


def _keys(result: dict[str, Any]) -> set[str]:
    """Keys that a result must have to be one; names of arms, modules and candidates are not among them."""
    from nextrl.runs import result as format_

    models = [m for m in vars(format_).values() if isinstance(m, type) and hasattr(m, "model_fields")]
    return {name for model in models for name in model.model_fields} & _all_keys(result)


def _all_keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {*value, *(k for item in value.values() for k in _all_keys(item))}
    return {k for item in value for k in _all_keys(item)} if isinstance(value, list) else set()
