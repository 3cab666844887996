"""Somebody's GRPO script, with one line added.

    python examples/grpo_with_leaps.py                    # with LeapCallback
    python examples/grpo_with_leaps.py --without          # the same run without it
    python examples/grpo_with_leaps.py --learning-rate 1e-3 --seed 1

Nothing here knows nextrl but the line marked below. The task is made up: six letters are to be answered backwards, and
the reward is the share of letters in their right places. The model is a GPT-2 of 0.2 million parameters, shown a
thousand batches of mostly right answers first, so that reinforcement learning has something to start from. The whole
script takes a minute or two on one core.
"""

from __future__ import annotations

import argparse
import random
import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

import nextrl

LETTERS, LENGTH = "abcdefgh", 6


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(["<pad>", "<eos>", ">", *LETTERS])}, "<pad>")
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def words(count: int, rng: random.Random) -> list[str]:
    return ["".join(rng.choices(LETTERS, k=LENGTH)) for _ in range(count)]


def reward(completions: list[str], word: list[str], **_: object) -> list[float]:
    """Share of letters in their right places; an answer of another length gets nothing."""
    return [
        sum(a == b for a, b in zip(answer, reversed(w), strict=False)) / LENGTH
        if len(answer) == LENGTH
        else 0.0
        for answer, w in zip(completions, word, strict=True)
    ]


def warmed_up_model(encode: PreTrainedTokenizerFast, rng: random.Random) -> GPT2LMHeadModel:
    """Taught on answers in which each letter is random with probability .35."""
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(encode), n_embd=64, n_layer=2, n_head=4, n_positions=32, bos_token_id=2,
                   eos_token_id=1, pad_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(1000):
        batch = words(64, rng)
        noisy = ["".join(rng.choice(LETTERS) if rng.random() < 0.35 else c for c in w[::-1]) for w in batch]
        ids = encode([f"{w}>{a}<eos>" for w, a in zip(batch, noisy, strict=True)], return_tensors="pt")[
            "input_ids"
        ]
        labels = ids.clone()
        labels[:, : LENGTH + 1] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--without", action="store_true", help="leave LeapCallback out")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    encode = tokenizer()
    model = get_peft_model(
        warmed_up_model(encode, rng),
        LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_proj", "c_fc"]),
    )
    data = words(4000, rng)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(), max_steps=options.steps, learning_rate=options.learning_rate,
            lr_scheduler_type="constant", per_device_train_batch_size=128, num_generations=8,
            max_completion_length=LENGTH + 2, beta=0.0, bf16=False, gradient_checkpointing=False, use_cpu=True,
            save_strategy="no", report_to="none", logging_steps=10, disable_tqdm=True, seed=options.seed,
        ),
        train_dataset=Dataset.from_dict({"prompt": [f"{w}>" for w in data], "word": data}),
        processing_class=encode,
    )  # fmt: skip
    if not options.without:
        nextrl.attach(trainer, every=10)  # <- the line
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print("training reward, mean of 10 steps each:", " ".join(f"{r:.3f}" for r in rewards))


if __name__ == "__main__":
    main()
