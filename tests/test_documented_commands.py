"""Every fenced command and snippet of README, docs and studies is typed here as it is printed, or counted below.

A block that cannot be typed here says so in the line before it, with the commands that are left out (or `all`):

    <!-- not typed, hours: python -m studies.grid.run, python -m studies.grid.tasks -->

The others run in a folder of the page's own, in the page's order, Python in one namespace. The folder holds what the
pages take for granted: a run (`runs/grpo`), a model (`models/mine`), the task that docs/tasks.md prints, the examples.
`SHORT` makes a few commands shorter than printed and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import trl_runs
from nextrl.engines.settings import LoraSettings
from nextrl.tasks.bases import tiny

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "studies/**/*.md")
    for path in ROOT.glob(pattern)
)

# Why a command may be left out -> how many are, on which page. Who leaves another out says so here.
LEFT_OUT = {
    "README.md": {"minutes": 2, "a real engine": 1},
    "docs/advice.md": {"hours": 2},
    "docs/algorithms.md": {"hours": 1, "a GPU": 1},
    "docs/auto-evidence.md": {"hours": 3, "half an hour": 1, "minutes": 1},
    "docs/checkpoints.md": {"a real engine": 1},
    "docs/engines.md": {"a real engine": 3},
    "docs/integrations.md": {"a real engine": 2},
    "docs/openrlhf.md": {"a real engine": 1},
    "docs/predictors.md": {"hours": 3},
    "docs/scale.md": {"a GPU": 1},
    "docs/verl.md": {"the network": 1},
    "studies/callback/README.md": {"hours": 1},
    "studies/paper/README.md": {"hours": 3},
    "studies/smollm2/README.md": {"hours": 1},
}

SHELL, PYTHON = {"console", "bash"}, {"python"}
DATA = {"text", "json", "toml", "yaml", "bibtex"}  # nothing to type

# What follows a command is added to it here: what it prints is as long as on the page, what it computes is not.
SHORT = {
    r"nextrl run examples/tiny\.yaml": "train.steps=2 train.save_every=1 eval.every=2 eval.prompts=8",
    r"nextrl eval": "--prompts 8",
}

_BLOCK = re.compile(
    r"(?:^<!-- not typed, (?P<why>[^:\n]+): (?P<what>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block: what of it is typed, and what is left out for which reason."""

    page: str
    line: int
    language: str
    typed: str
    left_out: tuple[str, ...] = ()
    why: str = ""


def blocks(text: str, page: str = "") -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    for match in _BLOCK.finditer(text):
        language, code, line = match["language"], match["code"], text.count("\n", 0, match.start()) + 1
        marks = [] if match["what"] is None else [mark.strip() for mark in match["what"].split(",")]
        typed, left = _split(code, marks, language)
        found.append(Block(page, line, language, typed, tuple(left), match["why"] or ""))
    return found


def _split(code: str, marks: list[str], language: str) -> tuple[str, list[str]]:
    """What is typed, and the commands that are not. A Python block is one command."""
    if marks == ["all"] and language in PYTHON:
        return "", [code]
    typed, left = [], []
    for command in re.sub(r"\\\n\s*", "", code).splitlines():
        bare = command.strip()
        chosen = (
            bool(bare) and not bare.startswith("#") and any(m == "all" or bare.startswith(m) for m in marks)
        )
        (left if chosen else typed).append(command)
    unused = [m for m in marks if m != "all" and not any(c.strip().startswith(m) for c in left)]
    assert not unused, f"left out, and not in the block: {unused}"
    return "\n".join(typed), left


def shortened(code: str) -> str:
    """The block with `SHORT`'s words at the ends of its commands, before their comments."""
    for command, words in SHORT.items():
        code = re.sub(
            rf"({command}[^#\n]*?)([ \t]*(?:#[^\n]*)?)$", rf"\1 {words}\2", code, flags=re.MULTILINE
        )
    return code


def on(page: str) -> list[Block]:
    return blocks((ROOT / page).read_text(encoding="utf-8"), page)


TYPED = [page for page in PAGES if any(b.typed.strip() for b in on(page) if b.language not in DATA)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted."""
    folder = tmp_path_factory.mktemp("place")
    _write_run(folder / "runs" / "grpo")
    shutil.copytree(folder / "runs" / "grpo", folder / "runs" / "seg0")
    _write_model(folder / "models" / "mine")
    task = next(block for block in on("docs/tasks.md") if block.language == "python")
    (folder / "my_task.py").write_text(task.typed)
    for name in ("examples", "studies", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def _write_run(folder: Path) -> None:
    """Twenty checkpoints of an adapter on the tiny base, along a line with noise, and rewards that rise."""
    torch.manual_seed(0)
    model = trl_runs.fresh_model(LoraSettings(r=4, alpha=8, target_modules=["q_proj", "down_proj"]))
    factors = [p for n, p in model.named_parameters() if "lora_B" in n]
    ways = [torch.randn_like(p) for p in factors]
    rewards = [{"step": step, "reward": 0.2 + step / 1000} for step in range(1, 201)]
    for step in range(10, 201, 10):
        with torch.no_grad():
            for factor, way in zip(factors, ways, strict=True):
                factor.copy_(1e-5 * (step * way + torch.randn_like(way)))
        where = folder / f"checkpoint-{step}"
        model.save_pretrained(where)
        (where / "README.md").unlink(missing_ok=True)
        state = {"log_history": rewards[:step], "global_step": step}
        (where / "trainer_state.json").write_text(json.dumps(state))


def _write_model(folder: Path) -> None:
    """A model of one token per printable character, untrained."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *map(chr, range(32, 127))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    config = LlamaConfig(vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=1)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    encode = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    encode.save_pretrained(folder)


def _namespace(folder: Path) -> dict[str, Any]:
    """The names that a snippet may use without saying where they come from."""
    import nextrl

    trainer = trl_runs.trainer(folder / "trained", max_steps=2)
    return {
        "__name__": "documented",
        "nextrl": nextrl,
        "LeapCallback": nextrl.LeapCallback,
        "GRPOTrainer": lambda *_: trainer,
        "trainer": trainer,
        "log_ratios": torch.zeros(8, 3),
        "advantages": torch.tensor([1.0, -1.0] * 4),
        "prompts": torch.arange(8) // 2,
        "completion_mask": torch.ones(8, 3),
    }


def _type(code: str, folder: Path) -> None:
    """Run a block as a shell would, from its folder, with the Python that runs this."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    given = {
        "PATH": path,
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
        "BASE": str(tiny.shipped("chain")),
        "TASK": "chain",
        "COLUMNS": "100",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("page", TYPED)
def test_what_a_page_prints_can_be_typed(
    page: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "page"
    shutil.copytree(place, folder, symlinks=True)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in on(page):
        if block.language in PYTHON and block.typed.strip():
            names = names or _namespace(tmp_path)
            exec(compile(block.typed, f"{page}:{block.line}", "exec", dont_inherit=True), names)
        elif block.language in SHELL and block.typed.strip():
            _type(shortened(block.typed), folder)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_left_out_is_counted(page: str) -> None:
    found = Counter(block.why for block in on(page) for _ in block.left_out)
    assert dict(found) == LEFT_OUT.get(page, {}), f"say in LEFT_OUT how many commands of {page} are not typed"


@pytest.mark.parametrize("page", PAGES)
def test_a_block_says_what_it_is(page: str) -> None:
    unknown = [f"line {b.line} ({b.language})" for b in on(page) if b.language not in SHELL | PYTHON | DATA]
    known = ", ".join(sorted(SHELL | PYTHON | DATA))
    assert not unknown, f"{page}: give each of these blocks a language of {known}: {', '.join(unknown)}"


def test_make_has_what_the_pages_name() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = {target for b in on(page) for c in b.left_out for target in re.findall(r"^make ([\w-]+)", c)}
        assert named <= targets, page


def test_a_block_is_split_by_its_mark() -> None:
    text = "<!-- not typed, hours: a b -->\n```console\na b  # long\nc \\\n  d\n```\n\n```python\nx\n```\n"
    first, second = blocks(text)
    assert (first.typed, first.left_out, first.why) == ("c d", ("a b  # long",), "hours")
    assert (second.typed, second.left_out) == ("x", ())
    with pytest.raises(AssertionError, match="not in the block"):
        blocks(text.replace("hours: a b", "hours: e"))


def test_a_command_is_shortened_before_its_comment() -> None:
    assert shortened("nextrl eval m  # why\nnextrl inspect r") == (
        "nextrl eval m --prompts 8  # why\nnextrl inspect r"
    )
