"""The embedded base models: a 430k-parameter Llama over a character vocabulary, and the recipe that made them.

`load(task)` reads what the package ships; `python -m nextrl.tasks.bases.tiny --task chain --out DIR` trains it anew
from a seed (under a minute on one core). The base of task A (`chain`) was taught the true rule until greedy answers
were right. It was then shown demonstrations whose steps are random with probability .3, so that greedy answers stay
right and samples are noisy. The base of task B (`chain-wrong-rule`) was taught `a*b` as `a*b + 1` modulo 7, and then
the same with probability .1 (docs/design.md, what this rests on).
"""

from __future__ import annotations

import argparse
import logging
import random
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nextrl.errors import InputError, needs
from nextrl.tasks.chain import ChainTask, solve

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

log = logging.getLogger(__name__)

_SPECIAL = ("<pad>", "<eos>", "<bos>")
_CHARACTERS = "0123456+-*="


@dataclass(frozen=True)
class Recipe:
    """How a base is made.

    Attributes:
        wrong_rule: teach `a*b + 1` for `a*b`.
        noise: probability that a step of the second phase's demonstrations is random.
        seed: seeds weights, batches and noise.
        batch: demonstrations per update.
        updates: (first phase at most, second phase).
        learning_rates: Adam's rate in the first phase, and at the start of the second (linear decay to zero).
        until_loss: the first phase ends when the mean loss of 20 updates falls below this.
    """

    wrong_rule: bool
    noise: float
    until_loss: float
    seed: int = 0
    batch: int = 128
    updates: tuple[int, int] = (2500, 150)
    learning_rates: tuple[float, float] = (2e-3, 5e-4)


RECIPES = {
    "chain": Recipe(wrong_rule=False, noise=0.3, until_loss=0.01, seed=1),
    "chain-wrong-rule": Recipe(wrong_rule=True, noise=0.1, until_loss=0.05),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Character tokenizer of 14 tokens, left-padded; a prompt starts with `<bos>`."""
    with needs("trl", "model 'tiny'"):
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *_CHARACTERS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        padding_side="left",
        model_max_length=64,
    )


def fresh_model(seed: int) -> LlamaForCausalLM:
    """An untrained tiny Llama: hidden 128, 2 layers, 4 heads, feed-forward 384, about 430k float32 parameters."""
    with needs("trl", "model 'tiny'"):
        from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(_SPECIAL) + len(_CHARACTERS),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def _batch(
    prompts: list[str], encode: PreTrainedTokenizerFast, recipe: Recipe, noise: float, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Token ids (batch, 15) and labels with -100 on the prompt."""
    texts = [
        p + solve(p, wrong_rule=recipe.wrong_rule, noise=noise, rng=rng)
        for p in rng.choices(prompts, k=recipe.batch)
    ]
    ids = torch.tensor(encode(texts)["input_ids"])
    ids = torch.cat([ids, torch.full((len(texts), 1), encode.eos_token_id)], dim=1)
    labels = ids.clone()
    labels[:, :9] = -100
    return ids, labels


def _phase(
    model: LlamaForCausalLM,
    recipe: Recipe,
    *,
    updates: int,
    learning_rate: float,
    noise: float,
    stop: float | None,
) -> int:
    """Supervised updates, at most `updates`.

    With `stop` the rate is constant and the phase ends once the mean loss of 20 updates falls below it; without,
    all updates are made and the rate falls linearly to zero, so that the base ends settled.
    """
    rng = random.Random(f"{recipe.seed}-{noise}")
    prompts = [example.prompt for example in ChainTask().examples("train")]
    encode = tokenizer()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda u: 1.0 if stop is not None else 1.0 - u / updates
    )
    recent: list[float] = []
    for update in range(updates):
        ids, labels = _batch(prompts, encode, recipe, noise, rng)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        decay.step()
        optimizer.zero_grad(set_to_none=True)
        recent = [*recent[-19:], loss.item()]
        if stop is not None and len(recent) == 20 and sum(recent) / 20 < stop:
            return update + 1
    return updates


def train(recipe: Recipe) -> LlamaForCausalLM:
    """Train a base from scratch, deterministically for a given recipe, machine and thread count."""
    model = fresh_model(recipe.seed)
    model.train()
    first, second = recipe.updates
    rates = recipe.learning_rates
    used = _phase(model, recipe, updates=first, learning_rate=rates[0], noise=0.0, stop=recipe.until_loss)
    log.info("first phase ended after %d updates", used)
    _phase(model, recipe, updates=second, learning_rate=rates[1], noise=recipe.noise, stop=None)
    return model.eval()


def shipped(task: str) -> Path:
    """Folder of the shipped base for a task.

    Raises:
        InputError: no base is shipped for that task.
    """
    folder = Path(str(resources.files("nextrl.tasks") / "bases" / task))
    if not (folder / "config.json").is_file():
        raise InputError(
            f"no tiny base is shipped for task '{task}': choose one of {', '.join(sorted(RECIPES))}"
        )
    return folder


def load(task: str) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The shipped base and its tokenizer, on CPU in float32."""
    with needs("trl", "model 'tiny'"):
        from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(shipped(task), dtype=torch.float32, local_files_only=True)
    return model, tokenizer()


def main(arguments: list[str] | None = None) -> None:
    """Train a base and write it as a Hugging Face folder."""
    parser = argparse.ArgumentParser(prog="python -m nextrl.tasks.bases.tiny", description=main.__doc__)
    parser.add_argument("--task", choices=sorted(RECIPES), default="chain")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO)
    model = train(RECIPES[options.task])
    model.save_pretrained(options.out)
    tokenizer().save_pretrained(options.out)


if __name__ == "__main__":
    main()
