"""What leaps add to a verl run of a 7B and a 70B policy, from shapes alone: `python -m studies.scale.table`.

Everything computed here is arithmetic on shapes; the few rates it needs are named constants with their source. Nothing
is measured by this file.
"""

from dataclasses import dataclass

from nextrl.engines.verl.segment_config import SegmentConfig
from studies.folders import parser

# docs/benchmarks-engine.md (b): GFLOP/s in float64 that one core reached on blocks 32 wide, the lower of its two.
FLOPS_CPU = 25e9
# vllm-project/vllm pull request 11267: Llama-2-7B with one rank-8 adapter on one A100, output tokens a second.
VLLM_7B = 1787.78
# Assumed, not measured: bytes a second of storage that all nodes see; 40 % of an H100's 989 bf16 TFLOP/s (data sheet).
STORAGE = 2e9
FLOPS_GPU = 0.4 * 989e12

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
    every: int = 20
    prompts: int = 128
    completions: int = 8
    tokens: int = 1024
    gpus: int = 8


# Qwen2.5-7B's and Llama-3-70B's config.json.
POLICIES = [
    Policy("7B, r 32", 28, 3584, 512, 18944, 7.6e9, 32),
    Policy("70B, r 64", 80, 8192, 1024, 28672, 70.6e9, 64),
]


def persistence_seconds(p: Policy) -> float:
    """Three inner products of displacements of width 2r: two (2r x 2r) Gram blocks a module, 2 (m + n) (2r)^2 FLOP."""
    flop = 3 * p.layers * sum(2 * (m + n) * (2 * p.rank) ** 2 for m, n in p.shapes)
    return flop / FLOPS_CPU


def rows(p: Policy, run: Run, gpus: int) -> list[tuple[str, str]]:
    """One column of the table."""
    config = SegmentConfig(every=run.every)
    adapter, windows = p.adapter * 4, run.steps // run.every
    trained = run.steps * run.prompts * run.completions
    search = config.advance + config.share * trained
    looked = 32 * run.tokens
    # A forward pass (2 FLOP a parameter and token) of the current policy and one for each alpha: 1, or 7 in a search.
    forward = 2 * p.parameters * looked / FLOPS_GPU
    return [
        ("LoRA parameters", f"{p.adapter / 1e6:.0f} M"),
        ("adapter, float32", f"{adapter / GB:.2f} GB"),
        ("Adam's moments of it (lost in a restart)", f"{2 * adapter / GB:.2f} GB"),
        ("GPU memory added in a training step", "0"),
        ("one verl save: adapter only (`save_lora_only`)", f"{3 * adapter / GB:.2f} GB with moments"),
        ("one verl save: whole model in float32", f"{(p.parameters * 4 + 3 * adapter) / GB:.0f} GB"),
        (f"read from each of {gpus} ranks' files a window", f"{adapter / gpus / 1e6:.0f} MB"),
        ("trajectory on storage, all windows", f"{(windows + 1) * adapter / GB:.1f} GB"),
        ("host memory of a decision (2 adapters, float32)", f"{2 * adapter / GB:.1f} GB"),
        ("persistence, one core", f"{persistence_seconds(p):.0f} s a window"),
        ("sent to verl at a restart", f"{adapter / GB:.2f} GB"),
        (
            "the base read again for scoring, bf16",
            f"{p.parameters * 2 / GB:.0f} GB, {p.parameters * 2 / STORAGE:.0f} s",
        ),
        ("divergence, one GPU's worth of FLOP", f"{2 * forward:.0f} s, {8 * forward:.0f} s with a search"),
        ("completions of searches, at most", f"{search:.0f} of {trained} ({search / trained:.1%})"),
        ("merged restart: model written, bf16", f"{p.parameters * 2 / GB:.0f} GB"),
        ("verl's merger: host memory, bf16", f"{(p.parameters + p.adapter) * 2 / GB:.0f} GB and the shards"),
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
    one = 64 * run.tokens / VLLM_7B
    print(
        f"\n64 completions a candidate on one A100 with vLLM (7B): {one:.0f} s; three candidates {3 * one:.0f} s."
    )


if __name__ == "__main__":
    main()
