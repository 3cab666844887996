"""`make check-gpu` without a GPU: the dry run writes a whole record, wheels and parts of the model are put together."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "check_gpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import check_gpu

    return check_gpu


def ran(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=900,
    )


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("dry") / "record.json"
    done = ran("--dry", "--out", out)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_a_dry_run_writes_a_whole_record(script: Any, dry: dict[str, Any]) -> None:
    assert all(map(math.isfinite, script.numbers(dry)))
    assert all(dry["checks"].values())
    assert dry["dry"] is True
    assert dry["machine"]["device"] == "CPU"
    names = ["plain-cautious", "plain-usual", "watched-usual", "auto-cautious"]
    assert [run["name"] for run in dry["runs"]] == names
    for run in dry["runs"]:
        assert run["steps"] == len(run["rewards"]) == script.DRY.steps
        assert 0.0 < run["seconds_per_step"] < 60.0
        assert run["peak_bytes"] > 10**8
    assert dry["runs"][3]["decisions"][-1]["learning_rate"] > 10 * script.DRY.cautious


def test_watching_changes_nothing(dry: dict[str, Any]) -> None:
    assert dry["runs"][1]["rewards"] == dry["runs"][2]["rewards"]


def test_the_leap_is_seen_in_what_is_sampled(script: Any, dry: dict[str, Any]) -> None:
    leap = dry["leap"]
    assert (leap["step"], leap["alpha"]) == (script.DRY.leap_at, script.DRY.alpha)
    assert leap["completions"] == script.DRY.prompts * script.DRY.completions
    assert leap["gain"] > 3.0 * leap["gain_error"] > 0.0


def test_a_method_that_is_fitted_leaps(dry: dict[str, Any]) -> None:
    assert [d["alpha"] for d in dry["fitted"]["decisions"]] == [0.0, 0.0, 1.0, 0.0]


def test_a_failed_check_is_in_the_exit_code(script: Any, monkeypatch, tmp_path: Path) -> None:
    found = {"plan": {"model": "/tmp/model"}, "checks": {"this": True, "that": False}}
    monkeypatch.setattr(script, "record", lambda *arguments: found)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert script.main(["--dry", "--out", str(tmp_path / "record.json")]) == 1
    assert json.loads((tmp_path / "record.json").read_text())["plan"]["model"] == "model"
    found["checks"]["that"] = True
    assert script.main(["--dry", "--out", str(tmp_path / "record.json")]) == 0


def test_fewer_minutes_can_be_asked_for(script: Any, monkeypatch, tmp_path: Path) -> None:
    asked: list[float] = []

    def record(plan: Any, *_: Any) -> dict[str, Any]:
        asked.append(plan.minutes)
        return {"plan": {"model": "model"}, "checks": {}}

    monkeypatch.setattr(script, "record", record)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for more in ([], ["--minutes", "2.5"]):
        assert script.main(["--dry", "--out", str(tmp_path / "record.json"), *more]) == 0
    assert asked == [script.DRY.minutes, 2.5]


def test_a_dry_run_never_writes_the_record_of_gpus(script: Any) -> None:
    with pytest.raises(SystemExit):
        script.main(["--dry", "--out", str(ROOT / "docs" / "gpu.json")])


def test_parts_of_the_model_are_joined_in_order(script: Any, tmp_path: Path) -> None:
    whole = bytes(range(256)) * 5000
    digest = hashlib.sha256(whole).hexdigest()
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(whole[:700_001])
    second.write_bytes(whole[700_001:])
    joined = script.join([first, second], tmp_path / "whole", digest)
    assert joined.read_bytes() == whole
    with pytest.raises(script.Unready, match="give all parts, in order"):
        script.join([second, first], tmp_path / "whole", digest)
    with pytest.raises(script.Unready, match="give all parts, in order"):
        script.join([first], tmp_path / "whole", digest)
    with pytest.raises(script.Unready, match="third: no such file"):
        script.join([first, tmp_path / "third"], tmp_path / "whole", digest)


def wheel(folder: Path, name: str) -> None:
    """A wheel of one module."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-1.0.dist-info"
    contents = {
        f"{name}.py": "HERE = True\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-there\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    names = [*contents, f"{about}/RECORD"]
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        for path, text in contents.items():
            file.writestr(path, text)
        file.writestr(f"{about}/RECORD", "".join(f"{path},,\n" for path in names))


def test_wheels_beside_it_are_imported(script: Any, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(script, "NEEDED", ("torch", "lies_in_a_wheel"))
    assert script.missing() == ["lies_in_a_wheel"]
    wheel(tmp_path / "wheels", "lies_in_a_wheel")
    script.add_wheels(tmp_path / "wheels", tmp_path / "packages")
    assert script.missing() == []
    assert script.metadata.version("lies_in_a_wheel") == "1.0"


@pytest.mark.parametrize("made", [(), ("broken-1.0-py3-none-any.whl",)])
def test_wheels_that_are_none_are_refused(script: Any, tmp_path: Path, made: tuple[str, ...]) -> None:
    for name in made:
        (tmp_path / name).write_text("no wheel")
    with pytest.raises(script.Unready, match=r"holds no wheels|cannot unpack these wheels"):
        script.add_wheels(tmp_path, tmp_path / "packages")


def test_without_a_gpu_a_whole_run_is_refused_in_one_line(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = ran("--out", tmp_path / "record.json")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("check_gpu: torch sees no GPU here; --dry")
    assert not (tmp_path / "record.json").exists()
