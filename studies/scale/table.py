"""What leaps add to a verl run of a 7B and a 70B policy, from shapes alone: `python -m studies.scale.table`.

Everything computed here is arithmetic on shapes; the few rates it needs are named constants with their source. Nothing
is measured by this file.
"""

from dataclasses import dataclass

from studies.folders import parser

# Assumed, not measured: 40 % of an H100's 989 bf16 TFLOP/s (data sheet); bytes a second between a host and its GPU.
FLOPS_GPU = 0.4 * 989e12
HOST = 20e9
# Copies of its shard that a worker holds at most (tests/engines/verl/test_remote.py counts them): four of the adapter,
# and three of Adam's two moments.
COPIES = 4 + 3 * 2

GB = 1e9


@dataclass(frozen=True)
class Policy:
    """A dense decoder with grouped keys and values, LoRA on its seven linear layers."""

    name: str
    layers: int
    hidden: int
    keys: int
    inner: int
    parameters: float
    rank: int

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(m, n) of the adapted matrices of one layer."""
        h, k, i = self.hidden, self.keys, self.inner
        return [(h, h), (k, h), (k, h), (h, h), (i, h), (i, h), (h, i)]

    @property
    def adapter(self) -> int:
        """LoRA parameters."""
        return self.layers * sum(self.rank * (m + n) for m, n in self.shapes)


@dataclass(frozen=True)
class Run:
    """A run of verl."""

    steps: int = 200
    every: int = 10
    prompts: int = 128
    completions: int = 8
    tokens: int = 1024
    gpus: int = 8


# Qwen2.5-7B's and Llama-3-70B's config.json.
POLICIES = [
    Policy("7B, r 32", 28, 3584, 512, 18944, 7.6e9, 32),
    Policy("70B, r 64", 80, 8192, 1024, 28672, 70.6e9, 64),
]


def rows(p: Policy, run: Run, gpus: int) -> list[tuple[str, str]]:
    """One column of the table."""
    adapter = p.adapter * 4
    shard = adapter / gpus
    tokens = run.prompts * run.completions * run.tokens
    forward = 2 * p.parameters * tokens / FLOPS_GPU / gpus
    # A step's own passes: one for the old log-probabilities, three forward passes' worth for the update.
    step = 4 * forward
    return [
        ("LoRA parameters", f"{p.adapter / 1e6:.0f} M"),
        ("adapter, float32", f"{adapter / GB:.2f} GB"),
        (f"its shard on each of {gpus} GPUs", f"{shard / 1e6:.0f} MB"),
        ("GPU memory added", "0"),
        ("host memory added, each worker, at most", f"{COPIES * shard / GB:.2f} GB"),
        ("gathered, or sent between GPUs", "0"),
        ("writing a candidate and putting back what was there", f"{2 * shard / HOST * 1e3:.0f} ms"),
        ("one pass over the step's batch (a look)", f"{forward:.0f} s"),
        ("a step's own passes, sampling not counted", f"{step:.0f} s"),
        (f"looks in a window of {run.every} steps, 1 to 4", f"{forward:.0f} to {4 * forward:.0f} s"),
        ("of the window's own passes", f"{1 / (4 * run.every):.1%} to {4 / (4 * run.every):.0%}"),
        ("completions generated", "0"),
        ("nextrl's part of a checkpoint, each worker", f"{3 * shard / 1e6:.0f} MB"),
    ]


def main() -> None:
    """Print the table as Markdown."""
    parser(__doc__).parse_args()
    run = Run()
    columns = [rows(p, run, gpus) for p, gpus in zip(POLICIES, (8, 32), strict=True)]
    print(
        f"| a window of {run.every} steps of {run.prompts} x {run.completions} completions of {run.tokens} tokens |",
        end="",
    )
    print(" | ".join(f" {p.name}" for p in POLICIES), "|")
    print("|---|---|---|")
    for pair in zip(*columns, strict=True):
        label = pair[0][0] if pair[0][0] == pair[1][0] else pair[0][0].replace("of 8 ", "of 8 (32) ")
        print(f"| {label} | {pair[0][1]} | {pair[1][1]} |")


if __name__ == "__main__":
    main()
