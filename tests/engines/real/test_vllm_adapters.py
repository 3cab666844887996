"""Adapters that nextrl writes, served by vLLM on request: as PEFT computes them, or as they were cached."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nextrl
from nextrl.engines.settings import LoraSettings
from nextrl.tasks.bases import tiny
from trl_runs import fresh_model

PAGE = Path(__file__).parents[3] / "docs" / "engines.md"
BLOCK = 32  # tokens that vLLM caches together
LONG = torch.randint(3, 14, (1, BLOCK + 8), generator=torch.Generator().manual_seed(0))
SHORT = LONG[:, : BLOCK - 8]  # of which nothing is cached
ROUNDING = 1e-4  # nats
Answers = Callable[..., Tensor]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A path of three checkpoints, as PEFT saves them, and a leap from it."""
    out = tmp_path_factory.mktemp("path")
    model = fresh_model(LoraSettings(r=4, alpha=8))
    torch.manual_seed(1)
    moves = {n: 0.02 * torch.randn_like(p) for n, p in model.named_parameters() if p.requires_grad}
    for step in (10, 20, 30):
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.requires_grad:
                    p.add_(moves[name])
        model.save_pretrained(out / f"checkpoint-{step}")
    found = nextrl.leap(nextrl.Trajectory.load(out), method="linear", horizon=20)
    found.save_adapter(out / "leap")
    return {"early": out / "checkpoint-10", "late": out / "checkpoint-30", "leap": out / "leap"}


@pytest.fixture(scope="module")
def expected(adapters: dict[str, Path]) -> Answers:
    """The next token's log-probabilities (vocabulary,) under an adapter, by PEFT."""
    from peft import PeftModel

    models = {
        name: PeftModel.from_pretrained(tiny.load("chain")[0], str(folder))
        for name, folder in adapters.items()
    }

    @torch.no_grad()
    def answer(name: str, prompt: Tensor = LONG) -> Tensor:
        logits: Tensor = models[name](prompt).logits
        return logits[0, -1].log_softmax(-1)

    return answer


@pytest.fixture(scope="module")
def served() -> Answers:
    """The same by vLLM, under what a request names."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(tiny.shipped("chain")),
        dtype="float32",
        max_model_len=64,
        block_size=BLOCK,
        enforce_eager=True,
        max_num_seqs=4,
        enable_lora=True,
        max_lora_rank=16,
        max_logprobs=14,
    )

    def answer(request: Any, prompt: Tensor = LONG) -> Tensor:
        (output,) = llm.generate(
            [{"prompt_token_ids": prompt[0].tolist()}],
            SamplingParams(temperature=1.0, max_tokens=1, logprobs=14),
            lora_request=request,
            use_tqdm=False,
        )
        first = output.outputs[0].logprobs[0]
        return torch.tensor([first[token].logprob for token in range(14)])

    return answer


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def request_of_the_docs() -> Callable[[Path], Any]:
    """`adapter_request` as docs/engines.md has it."""
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "LoRARequest" in c)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["adapter_request"]


def test_what_the_docs_ask_for_is_served(
    served: Answers, adapters: dict[str, Path], expected: Answers, tmp_path: Path
) -> None:
    adapter_request = request_of_the_docs()
    for name in ("early", "leap", "late", "leap"):
        assert apart(served(adapter_request(adapters[name])), expected(name)) < ROUNDING
    # Also where a folder's content is another one than before.
    for name in ("early", "late"):
        shutil.rmtree(tmp_path / "candidate", ignore_errors=True)
        shutil.copytree(adapters[name], tmp_path / "candidate")
        assert apart(served(adapter_request(tmp_path / "candidate")), expected(name)) < ROUNDING
    assert apart(expected("early"), expected("late")) > 100 * ROUNDING
    assert apart(expected("late"), expected("leap")) > 100 * ROUNDING


@pytest.mark.parametrize(("prompt", "number"), [(SHORT, 1001), (LONG, 1002)], ids=["short", "long"])
def test_a_number_used_before_serves_the_old_adapter(
    served: Answers, adapters: dict[str, Path], expected: Answers, prompt: Tensor, number: int
) -> None:
    """vLLM's behaviour, on which the docs rest: where this fails, they say too much."""
    from vllm.lora.request import LoRARequest

    def numbered(name: str, **options: Any) -> Tensor:
        return served(LoRARequest(f"{name}-{number}", number, str(adapters[name]), **options), prompt)

    assert apart(numbered("early"), expected("early", prompt)) < ROUNDING
    assert apart(numbered("late"), expected("early", prompt)) < ROUNDING
    again = apart(numbered("late", load_inplace=True), expected("late", prompt))
    if prompt is SHORT:
        assert again < ROUNDING
    else:  # the adapter is the new one, and the prompt's first block is cached from the old one
        assert again > 100 * ROUNDING
