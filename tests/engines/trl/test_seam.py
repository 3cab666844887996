"""The contract with TRL: this fails when TRL renames or changes what nextrl leans on; a run then fails at its start."""

from __future__ import annotations

import ast
import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import RepeatSampler

import nextrl
from nextrl import LeapCallback
from nextrl.engines.trl import samplers
from nextrl.engines.trl import seam_names as module
from nextrl.engines.trl.fused_head import score_labelled_columns
from nextrl.engines.trl.rollouts import TrainerRollouts
from nextrl.engines.trl.seam import Seam
from nextrl.engines.trl.seam_names import Attribute, Method, check
from nextrl.errors import InputError
from nextrl.tasks.bases import tiny
from prefix_batches import llama
from trl_runs import COMMON, TASK, VALIDATION, fresh_model, trainer

NEEDS: dict[str, tuple[Method | Attribute, ...]] = {
    "grpo": module.GENERATING,
    "rloo": module.GENERATING,
    "vllm": module.GENERATING + module.ENGINE,
    "sft": module.SUPERVISED,
}
EACH = [(kind, need) for kind, needs in NEEDS.items() for need in needs]
NAMES = [f"{kind} {need.name}" for kind, need in EACH]


def supervised(out: Path, **options: Any) -> SFTTrainer:
    common = {k: v for k, v in COMMON.items() if not k.startswith(("num_gen", "max_comp", "beta"))}
    rows = [{"prompt": e.prompt, "completion": "1"} for e in TASK.examples("train")[:64]]
    return SFTTrainer(
        model=fresh_model(),
        args=SFTConfig(output_dir=str(out), **{**common, "per_device_train_batch_size": 8, **options}),
        train_dataset=trl_dataset(rows),
        processing_class=tiny.tokenizer(),
    )


def trl_dataset(rows: list[dict[str, str]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def build(kind: str, out: Path, **options: Any) -> Any:
    """A real trainer; for vLLM one whose engine is a stand-in."""
    if kind == "sft":
        return supervised(out, **options)
    run = trainer(out, kind=RLOOTrainer if kind == "rloo" else GRPOTrainer, **options)
    if kind == "vllm":
        run.use_vllm, run._last_loaded_step, run.vllm_generation = True, -1, Engine()
    return run


class Engine:
    """Counts how often it is handed the weights, and answers "1" to everything."""

    def __init__(self) -> None:
        self.syncs = 0

    def sync_weights(self) -> None:
        self.syncs += 1

    def generate(self, prompts: list[list[int]], **_: Any) -> tuple[Any, ...]:
        return prompts, [[3, 1] for _ in prompts], [[[0.0], [0.0]] for _ in prompts], None


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One trainer of each kind, not trained."""
    return {kind: build(kind, tmp_path_factory.mktemp(kind)) for kind in NEEDS}


def rename(run: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a TRL that has renamed it looks like."""
    if name in vars(run):
        monkeypatch.setitem(vars(run), f"{name}_renamed", vars(run)[name])
        monkeypatch.delitem(vars(run), name)
        return
    for owner in [owner for owner in type(run).__mro__ if name in vars(owner)]:
        monkeypatch.setattr(owner, f"{name}_renamed", vars(owner)[name], raising=False)
        monkeypatch.delattr(owner, name)


@pytest.mark.parametrize(("kind", "need"), EACH, ids=NAMES)
def test_the_installed_trl_has_it_with_the_parameters_that_were_read(
    built: dict[str, Any], kind: str, need: Method | Attribute
) -> None:
    assert need.problem(built[kind]) is None
    if isinstance(need, Method):
        parameters = list(inspect.signature(getattr(built[kind], need.name)).parameters)
        assert tuple(parameters[: len(need.arguments)]) == need.arguments
        assert set(need.options) <= set(parameters)


@pytest.mark.parametrize(("kind", "need"), EACH, ids=NAMES)
def test_a_trl_that_has_renamed_it_is_refused(
    built: dict[str, Any], kind: str, need: Method | Attribute, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(built[kind])
    rename(built[kind], need.name, monkeypatch)
    # Without `use_vllm` nobody could say whether `_last_loaded_step` is needed: it is refused for the former.
    with pytest.raises(InputError, match=rf"has no (method|attribute) {need.name}") as refusal:
        check(built[kind])
    message = str(refusal.value)
    assert type(built[kind]).__name__ in message
    assert f"TRL {trl.__version__} is installed" in message
    assert f"as TRL {module.READ_IN} has it, and TRL {module.WORKS} is known to work" in message
    assert f"pip install 'trl=={module.WORKS}.*'" in message
    assert "\n" not in message


METHODS = [(kind, need) for kind, need in EACH if isinstance(need, Method) and kind != "vllm"]


@pytest.mark.parametrize(("kind", "need"), METHODS, ids=[f"{k} {n.name}" for k, n in METHODS])
def test_changed_parameters_are_refused_and_compatible_ones_are_not(
    built: dict[str, Any], kind: str, need: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, names = built[kind], (*need.arguments, *need.options)

    def override(parameters: str) -> None:
        scope: dict[str, Any] = {}
        exec(f"def method({parameters}): ...", scope)
        monkeypatch.setattr(run, need.name, scope["method"])

    override(f"{', '.join(names)}, more")
    with pytest.raises(InputError, match=rf"{need.name}\(.* that cannot be given .*'more'"):
        check(run)
    override("")
    with pytest.raises(InputError, match="too many positional arguments"):
        check(run)
    if len(need.arguments) > 1:
        override(", ".join((*reversed(need.arguments), *need.options)))
        with pytest.raises(InputError, match="not in the order"):
            check(run)
    for compatible in (
        ", ".join((*names, "more=None")),
        "*arguments, **options",
        ", ".join([f"own{i}" for i in range(len(need.arguments))] + list(need.options)),
    ):
        override(compatible)
        check(run)


def test_a_subclass_with_overrides_of_its_own_works(tmp_path: Path) -> None:
    class Own(GRPOTrainer):
        called = 0

        def _generate(self, texts: list[Any]) -> Any:
            type(self).called += 1
            return super()._generate(texts)

        def _calculate_rewards(self, *arguments: Any, **options: Any) -> Any:
            return super()._calculate_rewards(*arguments, **options)

    run = trainer(tmp_path)
    run.__class__ = Own
    assert run.num_generations == 4
    assert len(TrainerRollouts(run).rewards([VALIDATION[i] for i in range(3)], seed=0)) == 3
    assert Own.called == 1


def test_another_trainer_is_refused(built: dict[str, Any]) -> None:
    class DPOTrainer: ...

    with pytest.raises(InputError, match="DPOTrainer generates no completions to score"):
        check(DPOTrainer())


@pytest.mark.parametrize("name", ["_buffered_inputs", "_generate_and_score_completions"])
def test_a_run_is_refused_before_its_first_step(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path, [LeapCallback(2, validation=VALIDATION)])
    rename(run, name, monkeypatch)
    with pytest.raises(InputError, match=f"{name}: leaps lean on it"):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize("version", ["1.17.0", "2.0.0.dev0", "1.16.3", "1.9.0", "unknown"])
def test_a_newer_trl_is_mentioned_once(
    built: dict[str, Any], version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trl, "__version__", version)
    module._mention_newer.cache_clear()
    with caplog.at_level(logging.WARNING):
        check(built["grpo"])
        check(built["rloo"])
    lines = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    newer = version in ("1.17.0", "2.0.0.dev0")
    assert len(lines) == newer
    assert all(f"TRL {version} is newer than TRL {module.READ_IN}" in line for line in lines)


class Each(TrainerCallback):
    """Calls something at the end of each step."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self.call = call

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.call(state.global_step)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize("drop", [False, True])
def test_a_dropped_buffer_makes_the_next_step_sample_anew(tmp_path: Path, kind: str, drop: bool) -> None:
    sampled: list[int] = []
    held: list[list[Any]] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        sampled.append(len(completions))
        return [float(len(c)) for c in completions]

    def look(step: int) -> None:
        held.append(seam.buffered_rollouts())
        if drop and step == 2:
            seam.drop_buffered_rollouts()
            assert seam.buffered_rollouts() == []

    run = build(kind, tmp_path, rewards=reward, steps_per_generation=4, max_steps=4)
    run.add_callback(Each(look))
    seam = Seam(run)
    assert seam.buffered_rollouts() == []
    run.train()
    assert sampled == [128] * (2 if drop else 1)
    # A batch for each of four steps, with what nextrl reads of them.
    assert [len(batches) for batches in held] == [4] * 4
    for part in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"):
        assert held[0][0][part].shape[0] == 32
    same = held[1][2]["completion_ids"] is held[2][2]["completion_ids"]
    assert same is not drop


def test_rollouts_without_the_parts_that_are_read_are_refused(built: dict[str, Any]) -> None:
    run = built["grpo"]
    run._buffered_inputs = [{"prompt_ids": 1, "prompt_mask": 1, "completion_mask": 1}]
    try:
        with pytest.raises(InputError, match="rollouts without completion_ids"):
            Seam(run).buffered_rollouts()
    finally:
        run._buffered_inputs = None


def rows_of(*places: int) -> list[dict[str, Any]]:
    """Each of some validation rows as often as a training batch has it."""
    return [dict(VALIDATION[i]) for i in places for _ in range(COMMON["num_generations"])]


def test_vllm_takes_the_weights_again_at_the_same_step_only_when_told(built: dict[str, Any]) -> None:
    run = built["vllm"]
    seam, engine, rows = Seam(run), run.vllm_generation, rows_of(0)
    run.model.eval()
    with seam.untouched():
        for expected in (1, 1):
            seam.score(rows)
            assert engine.syncs == expected
        seam.weights_changed()
        seam.score(rows)
        assert engine.syncs == 2


def test_without_vllm_nothing_is_marked(built: dict[str, Any]) -> None:
    Seam(built["grpo"]).weights_changed()
    assert not hasattr(built["grpo"], "_last_loaded_step")


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_scoring_goes_through_the_trainer_and_leaves_no_trace(built: dict[str, Any], kind: str) -> None:
    run, rows = built[kind], rows_of(0, 1, 2)
    seam, graded = Seam(run), []
    own = run.reward_funcs[0]
    run.reward_funcs[0] = lambda **options: graded.append(options) or own(**options)
    before, held = run.num_generations_eval, {k: v for k, v in vars(run).items() if k != "reward_funcs"}
    run.model.eval()
    with seam.untouched():
        scored = seam.score(rows)
    run.reward_funcs[0] = own
    completions = graded[0]["completions"]
    expected = [TASK.reward(c, row["answer"]) for c, row in zip(completions, rows, strict=True)]
    assert seam.combined(scored).tolist() == expected
    assert scored.by_function.dtype == torch.float64
    assert scored.length == pytest.approx(sum(map(len, graded[0]["completion_ids"])) / 12)
    assert 0.0 <= scored.truncated <= 1.0
    ids, attention, mask = scored.tokens
    assert ids.shape == attention.shape
    assert mask.sum(1).tolist() == [len(c) for c in graded[0]["completion_ids"]]
    assert not any(run._metrics["eval"].values())
    assert run.num_generations_eval == before
    assert {k: v for k, v in vars(run).items() if k != "reward_funcs"} == held
    assert not any(run._logs["prompt"])
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    assert seam.per_token_logps(ids, mask, 3).shape == (2, 3)


PARTS = dict.fromkeys(("prompt_ids", "completion_ids", "prompt_mask", "completion_mask"), torch.ones(8, 2))


@pytest.mark.parametrize(
    ("name", "returns", "call", "clause"),
    [
        (module.SCORE.name, [1, 2, 3], lambda s: s.score(rows_of(0)), "no rollouts from _generate_and"),
        (module.SCORE.name, {"prompt_ids": 1}, lambda s: s.score(rows_of(0)), "no rollouts from _generate"),
        (module.SCORE.name, PARTS, lambda s: s.score(rows_of(0)), "calls no _calculate_rewards"),
        ("_calculate_rewards", torch.zeros(4), lambda s: s.score(rows_of(0)), "no reward of each function"),
        (
            module.PER_TOKEN.name,
            {"logps": torch.zeros(1, 2)},
            lambda s: s.per_token_logps(torch.ones(1, 3), torch.ones(1, 3), 2),
            "log-probabilities",
        ),
        (
            module.PER_TOKEN.name,
            (torch.zeros(1, 3), None),
            lambda s: s.per_token_logps(torch.ones(1, 3), torch.ones(1, 3), 2),
            "log-probabilities",
        ),
        ("_metrics", {"train": {}, "eval": {}}, lambda s: s._generation_lengths(), "mean_length"),
        (
            "_metrics",
            {"train": {"completions/mean_length": [1.0]}},
            lambda s: s.training_metric("reward"),
            "no metric 'reward'",
        ),
    ],
)
def test_a_result_of_another_form_is_refused(
    built: dict[str, Any],
    name: str,
    returns: Any,
    call: Callable[[Seam], Any],
    clause: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seam = Seam(built["rloo"])
    made = returns if name == "_metrics" else lambda *arguments, **options: returns
    built["rloo"].model.eval()
    monkeypatch.setattr(built["rloo"], name, made)
    with pytest.raises(InputError, match=clause):
        call(seam)


@pytest.mark.parametrize(
    ("kind", "name"), [("grpo", "reward"), ("rloo", "reward"), ("sft", "mean_token_accuracy")]
)
def test_a_step_measures_what_a_window_s_reward_is(tmp_path: Path, kind: str, name: str) -> None:
    found: list[float] = []
    run = build(kind, tmp_path, max_steps=2)
    run.add_callback(Each(lambda step: found.append(len(Seam(run).training_metric(name)))))
    run.train()
    assert found == [1, 1]
    Seam(run).training_metrics()["of our own"].append(3.0)
    run.log({})
    assert run.state.log_history[-1]["of our own"] == 3.0


def test_a_supervised_batch_is_on_the_device_with_its_labels(built: dict[str, Any]) -> None:
    seam = Seam(built["sft"])
    batch = seam.prepared([built["sft"].train_dataset[i] for i in range(2)])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert not seam.packs_rows
    assert not seam.generates


def test_a_replaced_sampler_is_what_the_loader_draws_from(tmp_path: Path) -> None:
    trained: set[str] = set()

    def reward(prompts: list[str], **_: Any) -> list[float]:
        trained.update(prompts)
        return [0.0] * len(prompts)

    class Replace(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            loader = samplers.training_loader(run)
            assert loader is kwargs["train_dataloader"]
            assert isinstance(samplers.dataset_sampler(loader), RepeatSampler)
            samplers.replace_dataset_sampler(loader, [7] * 400)

    run = trainer(tmp_path, [Replace()], rewards=reward, max_steps=1)
    run.train()
    assert trained == {run.train_dataset[7]["prompt"]}


def test_the_sampler_is_found_inside_what_accelerate_wraps_around_it() -> None:
    from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches

    plain = DataLoader(range(12), batch_size=2, sampler=SequentialSampler(range(12)))
    wrapped = skip_first_batches(prepare_data_loader(plain, num_processes=2, process_index=1), 1)
    assert isinstance(samplers.dataset_sampler(wrapped), SequentialSampler)
    shard = BatchSamplerShard(BatchSampler(SequentialSampler(range(12)), 2, False), 2, 0)
    samplers.replace_dataset_sampler(DataLoader(range(12), batch_sampler=shard), [5] * 12)
    assert [index for batch in shard for index in batch] == [5] * 6


def test_orders_drawn_again_are_those_of_the_epochs_that_are_over() -> None:
    def loader() -> DataLoader[Any]:
        sampler = RepeatSampler(range(10), mini_repeat_count=1, seed=3)
        return DataLoader(range(10), sampler=sampler)  # type: ignore[arg-type]

    whole, resumed = loader(), loader()
    epochs = [[int(x) for x in whole] for _ in range(3)]
    samplers.draw_orders_again(resumed, 2)
    assert [int(x) for x in resumed] == epochs[2]
    assert epochs[2] != epochs[0]


def test_a_fused_head_without_shifted_labels_is_refused() -> None:
    from trl.trainer.utils import add_fused_lm_head

    whole, other = llama(), llama()
    add_fused_lm_head(whole)
    score_labelled_columns(whole)
    plain = other.forward
    other.forward = lambda *args, fused_lm_head=False, labels=None, **kwargs: plain(*args, **kwargs)
    with pytest.raises(InputError, match="takes no shift_labels"):
        score_labelled_columns(other)


# No other module names what is private to a trainer.

SOURCE = Path(nextrl.__file__).parent
LEANED_ON = {need.name for _, need in EACH}
SEEING = {"getattr", "setattr", "hasattr", "delattr"}


def is_trainer(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lstrip("_") in {"trainer", "run", "built"}


def offences(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of each use of a trainer's private names, as an attribute or as a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            if (is_trainer(node.value) and private) or (node.attr in LEANED_ON and not own):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and node.value in LEANED_ON:
            yield node.lineno, str(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SEEING:
            name = node.args[1] if len(node.args) > 1 else None
            plain = isinstance(name, ast.Constant) and not str(name.value).startswith("_")
            if is_trainer(node.args[0]) and not plain:
                yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize(
    "source",
    [
        "self._trainer._buffered_inputs = None",
        "trainer._signature_columns",
        "x._last_loaded_step",
        "getattr(anything, '_metrics')",
        "setattr(self._trainer, '_new_private_name', 1)",
        "getattr(trainer, self._METHOD)",
        "NAMES = ('_pending_metrics',)",
        "run.use_vllm",
    ],
)
def test_a_use_outside_the_seam_would_be_seen(source: str) -> None:
    assert list(offences(source))


def test_private_names_of_a_trainer_are_in_the_seam_alone() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {name}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.name not in ("seam.py", "seam_names.py")
        for line, name in offences(path.read_text(encoding="utf-8"))
    ]
    assert found == []
