"""Each optional package missing in turn: what does not need it works, what does says how to install it."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from isolation import nextrl, python
from lora_runs import write_run
from nextrl.cli import VERBS
from nextrl.engines import named_optimizers
from nextrl.errors import EXTRAS, InputError, MissingExtra, needs, require

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/nextrl"
OPTIONAL = sorted({module for modules in EXTRAS.values() for module in modules} | {"pandas", "verl"})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve checkpoints, with rewards beside them."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, steps=range(10, 130, 10))
    history = [{"step": step, "reward": 0.1 + step / 300} for step in range(1, 121)]
    for step in range(10, 130, 10):
        state = {"log_history": history[:step], "global_step": step}
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect",),
        ("analyze",),
        ("analyze", "--out", "{out}", "--plots", "none"),
        ("backtest", "--horizon", "20"),
        ("advise",),
        ("leap", "--method", "secant", "--horizon", "20", "--out", "{out}"),
    ],
)
def test_the_base_verbs_work_with_no_extra_at_all(
    run: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    verb, *options = (word.format(out=tmp_path / "out") for word in arguments)
    done = nextrl(verb, str(run), *options, "--json", without=OPTIONAL)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    if verb == "backtest":  # in a comparison of all methods, one that cannot be fitted is left out and named
        assert "nextrl[rivals]" in found["skipped"]["alpharl"]


def test_every_verb_explains_itself_with_no_extra_at_all() -> None:
    for verb in VERBS:
        done = nextrl(verb, "--help", without=OPTIONAL)
        assert (done.returncode, done.stderr) == (0, ""), verb


def test_a_config_is_shown_without_a_trainer() -> None:
    done = nextrl("run", str(ROOT / "examples/tiny.yaml"), "--print-config", "--json", without=OPTIONAL)
    assert json.loads(done.stdout)["derived"]["completions_per_step"] > 0


SECANT = "--method secant --horizon 20"
FEATURES = {
    "demo": ("trl", "demo --out {out}"),
    "run": ("trl", "run {root}/examples/tiny.yaml output_dir={out}"),
    "eval": ("trl", "eval tiny --prompts 8"),
    "leap with a search": ("trl", "leap {run} --alpha auto --task chain --base tiny --out {out}"),
    "leap into a hub's model": ("trl", f"leap {{run}} {SECANT} --as merged --base some/model --out {{out}}"),
    "verl": ("verl", "run {root}/examples/verl.yaml model={base} output_dir={out}"),
    "figures": ("plots", "analyze {run} --out {out}"),
    "plot": ("plots", "backtest {run} --methods secant --horizon 20 --plot {out}.png"),
    "alpharl in a backtest": ("rivals", "backtest {run} --methods alpharl --horizon 20"),
    "alpharl in a leap": ("rivals", "leap {run} --method alpharl --horizon 20 --out {out}"),
    "the demo's controls": ("rivals", "demo --out {out} --quick"),
    "a rate-free optimizer": (
        "rivals",
        "run {root}/examples/tiny.yaml output_dir={out} train.optimizer=mechanic leap.method=none",
    ),
    "reasoning-gym": ("tasks", "eval tiny --task reasoning_gym:gcd"),
    "math-verify": ("tasks", "eval tiny --task {file}:math"),
    "smollm": ("smollm", "eval smollm2-135m"),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(
    run: Path, tmp_path: Path, feature: str
) -> None:
    extra, command = FEATURES[feature]
    questions = tmp_path / "questions.jsonl"
    rows = ({"prompt": f"{n}+1=", "answer": f"{n + 1}"} for n in range(99))
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = {"run": run, "root": ROOT, "base": PACKAGE / "tasks/bases/chain", "out": tmp_path / "out"}
    arguments = [word.format(**places, file=questions) for word in command.split()]
    done = nextrl(*arguments, without=list(EXTRAS[extra]))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.endswith(f"which is not installed: pip install 'nextrl[{extra}]'\n"), done.stderr
    assert not list(tmp_path.glob("out*"))


OPTIMIZERS = {name: extra for name in named_optimizers.names() if (extra := named_optimizers.get(name).extra)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("call", ["check_installed()", "build(torch.nn.Linear(1, 1), 1.0)"])
def test_the_optimizers_of_extras_say_what_they_need(optimizer: str, call: str) -> None:
    code = f"import torch; from nextrl.engines import named_optimizers as n; n.get({optimizer!r}).{call}"
    done = python(code, without=list(EXTRAS[OPTIMIZERS[optimizer]]))
    wanted = f"not installed: pip install 'nextrl[{OPTIMIZERS[optimizer]}]'"
    assert done.stderr.splitlines()[-1].endswith(wanted)


def test_the_callback_says_what_it_needs() -> None:
    done = python("import nextrl; nextrl.LeapCallback", without=list(EXTRAS["trl"]))
    last = done.stderr.splitlines()[-1]
    assert last.startswith("nextrl.errors.MissingExtra: nextrl.LeapCallback needs ")
    assert last.endswith("pip install 'nextrl[trl]'")


def test_a_broken_package_is_not_taken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sklearn").mkdir()
    init = tmp_path / "sklearn" / "__init__.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    for broken, kind in (
        ("raise ImportError('built for another numpy')", ImportError),
        ("import a_package_that_sklearn_needs", ModuleNotFoundError),
        ("import sklearn.gone", ModuleNotFoundError),
    ):
        init.write_text(broken)
        with pytest.raises(kind) as caught, needs("rivals", "a test"):
            import sklearn  # noqa: F401
        assert not isinstance(caught.value, InputError)
    require("sklearn", "rivals", "a test")  # it is there, which is all that is asked


def test_the_exception_says_which_extra() -> None:
    with pytest.raises(MissingExtra, match=r"^a plot needs matplotlib, which is not installed: ") as caught:
        raise MissingExtra("plots", "matplotlib", "a plot")
    assert caught.value.extra == "plots"


def test_the_table_of_extras_is_the_one_that_pip_reads() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    section = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    lines = re.findall(r"^(\w+) = (\[.*\])$", section, re.MULTILINE)
    lists = {name: ast.literal_eval(value) for name, value in lines}
    named = {extra: {re.split(r"[<>=]", line)[0] for line in listed} for extra, listed in lists.items()}
    assert set(named) == {*EXTRAS, "all", "dev", "docs"}
    for extra, modules in EXTRAS.items():
        differ = named[extra] ^ set(modules.values())
        assert not differ, f"EXTRAS (src/nextrl/errors.py) and pyproject.toml differ under {extra}: {differ}"
    assert "verl" not in str(lists["all"])


def _imports(tree: ast.AST, guarded: bool, inside: bool) -> list[tuple[str, bool, bool]]:
    """(module, whether `needs` or TYPE_CHECKING stands around it, whether a function does) of each import."""
    found: list[tuple[str, bool, bool]] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, guarded, inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, guarded, inside)]
            found += [(f"{node.module}.{alias.name}", guarded, inside) for alias in node.names]
        else:
            head = ast.unparse(node.items[0].context_expr) if isinstance(node, ast.With) else ""
            head = ast.unparse(node.test) if isinstance(node, ast.If) else head
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            found += _imports(
                node, guarded or head.startswith(("needs(", "TYPE_CHECKING")), inside or function
            )
    return found


def test_optional_packages_are_entered_by_the_one_door() -> None:
    """Heavy modules import an optional package at their top, or a heavy module; the others must ask `needs`."""
    modules: dict[str, list[tuple[str, bool, bool]]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        modules[name.removesuffix(".__init__")] = _imports(ast.parse(path.read_text()), False, False)
    heavy = {module for packages in EXTRAS.values() for module in packages}

    def of_heavy(name: str) -> bool:
        return name in heavy or name.partition(".")[0] in heavy

    def is_heavy(name: str) -> bool:
        return any(of_heavy(m) for m, guarded, inside in modules[name] if not guarded and not inside)

    while more := {name for name in modules if name not in heavy and is_heavy(name)}:
        heavy |= more
    assert "nextrl.engines.trl.trainer" in heavy
    for name, found in modules.items():
        if name in heavy:
            assert name.startswith(("nextrl.engines.", "nextrl.runs.")), name
        else:
            assert not [m for m, guarded, _ in found if of_heavy(m) and not guarded], name
