"""The card beside what we write, as huggingface_hub reads it, and what a push sends, to a stand-in for the Hub."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import lora_runs
import synthetic_runs as synthetic
from lora_runs import write_run
from nextrl.cli.leap import leap as leap_verb
from nextrl.leaps.leap import leap
from nextrl.leaps.model_card import base_name, card_text
from nextrl.tasks import bases
from nextrl.trajectory.trajectory import Trajectory

COMMIT = "a" * 40


def written(tmp_path: Path, base: str | None, task: str | None = None) -> ModelCard:
    config: dict[str, Any] = {"target_modules": ["q_proj", "up_proj"], "base_model_name_or_path": base}
    traj = synthetic.run(synthetic.line, adapter_config=config)
    leap(traj, "secant", horizon=20, alpha=2.0).save_adapter(tmp_path / "out", task=task)
    return ModelCard.load(tmp_path / "out" / "README.md")


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![i](http://evil/x.png) [x](javascript:alert(1))",
    "see https://evil.example or www.evil.example or me@evil.example",
    "a|b",
    r"a\|b and a\\|b",
    "`` ` <b> ```",
    "&lt;b&gt; [a][b]",
    "two\n\n# lines <b>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_stranger_wrote_into_a_cell_is_text(text: str) -> None:
    """`--push-to-hub` publishes the card, and a base model's name may be anything."""
    rows = {"base model": text, "method": "secant"}
    page = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(card_text("About.", None, rows, kind="adapter"))
    )
    assert [row.count("<td>") for row in page.split("<tr>")[2:]] == [2, 2]
    cell = page.split("<td>")[2].split("</td>")[0]
    assert cell.startswith("<code>")
    assert cell.endswith("</code>")
    shown = html.unescape(cell.removeprefix("<code>").removesuffix("</code>")).strip()
    # Backslashes before a bar are shown twice: without, the bar would end the cell.
    assert re.sub(r"\\+", "/", shown) == re.sub(r"\\+", "/", text.replace("\n", " "))


@pytest.mark.parametrize(
    "text",
    [
        "Qwen/Qwen3-8B",
        "my_model__v2",
        "LoRA, rank 8, alpha 16.0",
        "layers.*.norm.weight: 3% (of 2)",
        "Modèle 模型",
    ],
)
def test_an_ordinary_name_stands_in_its_cell_as_it_is(text: str) -> None:
    assert f"| base model | {text} |" in card_text("About.", None, {"base model": text}, kind="adapter")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache of nothing but names: Qwen/Qwen3-8B, a/b, c/d and gpt2."""
    for name in ("Qwen--Qwen3-8B", "a--b", "c--d", "gpt2"):
        (tmp_path / "hub" / f"models--{name}" / "snapshots" / COMMIT).mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("cache")
def test_the_card_says_what_it_is_and_parses(tmp_path: Path) -> None:
    card = written(tmp_path, "Qwen/Qwen3-8B")
    assert card.data.base_model == "Qwen/Qwen3-8B"
    assert card.data.library_name == "peft"
    assert set(card.data.tags or ()) == {"lora", "nextrl"}
    for words in (
        "| method | secant |",
        "| alpha | 2 |",
        "| horizon | 20 steps |",
        "step 160",
        "from_pretrained",
    ):
        assert words in card.text
    note = json.loads((tmp_path / "out" / "nextrl.json").read_text())
    assert "README.md" in note["files"]


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("tiny", "tiny"),
        ("/models/anna/secret/Qwen3-8B", "Qwen3-8B"),
        ("./models/x", "x"),
        ("~/models/x", "x"),
        (f"/anna/hub/models--Qwen--Qwen3-8B/snapshots/{'a' * 40}", "Qwen/Qwen3-8B"),
        (f"/anna/hub/models--gpt2/snapshots/{'a' * 40}", "gpt2"),
        ("a\0b", "a\0b"),
        (None, None),
        (3, None),
    ],
)
def test_a_base_is_named_without_this_machine_s_folders(named: object, shown: str | None) -> None:
    assert base_name(named) == shown


def test_a_base_of_ours_is_loaded_as_ours(tmp_path: Path) -> None:
    text = written(tmp_path, "tiny").text
    assert "from_pretrained('tiny')" not in text
    load = next(line for line in text.splitlines() if line.startswith("base, tokenizer = "))
    names: dict[str, Any] = {"bases": bases, "TASK": "chain"}
    exec(load, names)
    assert names["base"].config.model_type == "llama"


def test_what_is_known_is_filled_in(tmp_path: Path) -> None:
    text = written(tmp_path, "tiny", "/models/anna/chain-wrong-rule.py").text
    assert "bases.load('tiny', 'chain-wrong-rule.py')" in text
    assert "from_pretrained(base, 'out')" in text
    for blank in ("TASK", "PATH", "/models"):
        assert blank not in text
    assert "TASK: the run's" in written(tmp_path, "tiny").text


def test_the_verb_knows_the_task_of_our_own_run(tmp_path: Path) -> None:
    run = synthetic.write(tmp_path / "run" / "trajectory", synthetic.line, synthetic.noisy(lambda t: 0.3))
    (tmp_path / "run" / "config.yaml").write_text(
        "model: tiny\ntask: chain-wrong-rule\nleap: {method: none}\n"
    )
    for named, task in ((None, "chain-wrong-rule"), ("chain", "chain")):
        leap_verb(run, tmp_path / "out", method="secant", task=named)
        assert f"bases.load('tiny', '{task}')" in (tmp_path / "out" / "README.md").read_text()


def test_a_path_is_in_no_card(tmp_path: Path) -> None:
    card = written(tmp_path, "/models/anna/Qwen3-8B")
    assert "/models" not in str(card)
    assert str(tmp_path) not in str(card)
    assert card.data.base_model is None


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "gpt2"])
def test_a_model_that_the_cache_holds_is_one_of_the_hub(tmp_path: Path, name: str) -> None:
    assert written(tmp_path, name).data.base_model == name


def test_a_folder_of_the_cache_is_the_model_and_not_its_commit(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "link").symlink_to(cache / "models--gpt2" / "snapshots" / COMMIT)
    for place in (cache / "models--gpt2" / "snapshots" / COMMIT, tmp_path / "link"):
        card = written(tmp_path, str(place))
        assert card.data.base_model == "gpt2"
        assert "| base model | gpt2 |" in card.text


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["models/Qwen3-8B-sft", "Qwen3-8B-sft", "runs/old/final", "tiny", "a\0b"])
def test_a_name_that_may_be_a_folder_of_the_trainer_s_machine_is_no_model_of_the_hub(
    tmp_path: Path, name: str
) -> None:
    """Whatever lies in the folder that the leap is made from."""
    card = written(tmp_path, name)
    assert card.data.base_model is None
    assert name.replace("\0", "") in card.text.replace("\\x00", "")


def test_a_folder_called_as_a_model_of_the_hub_is_none(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", str(tmp_path / "gpt2")):
        card = written(tmp_path, name)
        assert card.data.base_model is None
        assert "| base model | gpt2 |" in card.text


def test_a_merged_model_is_called_by_the_base_it_was_given_and_says_what_the_run_names(
    tmp_path: Path, cache: Path
) -> None:
    base = tmp_path / "base"
    lora_runs.model().save_pretrained(base)
    write_run(tmp_path / "run", lora_runs.lora(), base=lora_runs.model())
    for config in (tmp_path / "run").glob("*/adapter_config.json"):
        named = {"base_model_name_or_path": "Qwen/Qwen3-8B"}
        config.write_text(json.dumps({**json.loads(config.read_text()), **named}))
    made = leap(Trajectory.load(tmp_path / "run"), "none", horizon=10)
    made.save_merged(tmp_path / "out", base)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model is None  # nobody can tell whether the folder holds it
    assert "| base model | base |" in card.text
    assert "| base model that the run names | Qwen/Qwen3-8B |" in card.text
    snapshot = cache / "models--Qwen--Qwen3-8B" / "snapshots" / COMMIT
    shutil.copytree(base, snapshot, dirs_exist_ok=True)
    (tmp_path / "linked").symlink_to(snapshot)
    for given in (snapshot, tmp_path / "linked"):
        made.save_merged(tmp_path / "out", given)
        card = ModelCard.load(tmp_path / "out" / "README.md")
        assert card.data.base_model == "Qwen/Qwen3-8B"
        assert "| base model | Qwen/Qwen3-8B |" in card.text
        assert "that the run names" not in card.text


def test_a_card_of_an_older_leap_is_replaced(tmp_path: Path) -> None:
    written(tmp_path, "a/b")
    assert "c/d" in str(written(tmp_path, "c/d"))


def test_a_card_that_a_user_changed_stays(tmp_path: Path) -> None:
    written(tmp_path, "a/b")
    card = tmp_path / "out" / "README.md"
    card.write_text(card.read_text() + "\nMy own words.\n")
    for _ in range(2):
        assert "My own words." in str(written(tmp_path, "c/d"))


class Hub(BaseHTTPRequestHandler):
    """The four requests of a push, as the Hub answers them; files are kept by name."""

    files: dict[str, bytes]
    asked: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        self.asked.append(self.path)
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            self._answer({"url": f"http://{self.headers['Host']}/anna/{name}", "name": f"anna/{name}"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                }
            )
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            address = f"http://{self.headers['Host']}/anna/leap/commit/{'0' * 40}"
            self._answer({"commitUrl": address, "commitOid": "0" * 40, "success": True})
        else:
            self._answer({})

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self._answer({"id": "anna/leap", "sha": "0" * 40, "siblings": []})

    def _chunks(self) -> bytes:
        whole = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        return whole

    def _answer(self, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OneHub", (Hub,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()


def pushed(tmp_path: Path, endpoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    write_run(tmp_path / "run")
    command = [sys.executable, "-m", "nextrl", "leap", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    given = {
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": "hf_stand_in",
        "HF_HOME": str(tmp_path / "home"),
        **environment,
    }
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return subprocess.run(
        [*command, "--method", "secant", "--horizon", "20", "--push-to-hub", "leap", "--private"],
        capture_output=True,
        text=True,
        check=False,
        env={**inherited, **given},
    )


def test_a_push_sends_the_folder(tmp_path: Path, hub: tuple[str, type[Hub]]) -> None:
    endpoint, handler = hub
    done = pushed(tmp_path, endpoint)
    assert done.returncode == 0, done.stderr
    assert "Sent to" in done.stdout
    here = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert handler.files == here
    assert {"README.md", "adapter_model.safetensors", "nextrl.json"} <= set(here)
    assert done.stderr == ""  # no bars


def test_a_hub_that_is_not_there_is_one_line_and_the_adapter_stays(tmp_path: Path) -> None:
    done = pushed(tmp_path, "http://127.0.0.1:9")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--push-to-hub" in done.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_user_who_is_offline_is_told_so(tmp_path: Path) -> None:
    done = pushed(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "HF_HUB_OFFLINE is set" in done.stderr


def test_short_reprs(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    traj = Trajectory.load(tmp_path / "run")
    result = leap(traj, "secant", horizon=20)
    for value in (traj, result, result.delta(traj.modules[0])):
        assert len(repr(value)) < 200 + len(str(tmp_path))
        assert "tensor(" not in repr(value)
    assert "4 checkpoints from step 10 to 40" in repr(traj)
    assert "secant, from step 40, 20 steps ahead" in repr(result)
