"""Whatever reads a file or parses text goes through the doors: no other module of nextrl does it by itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "nextrl"

# What reads: a function or method by name, and, of the names that mean much else too, those of these modules alone.
READS = {
    "read_text",
    "read_bytes",
    "safe_open",
    "load_file",
    "model_validate_json",
    "fdopen",
    "fromfile",
    "genfromtxt",
}
OF_MODULES = {
    "load",
    "loads",
    "load_all",
    "safe_load",
    "unsafe_load",
    "full_load",
    "memmap",
    "reader",
    "DictReader",
}
MODULES = {"json", "yaml", "torch", "np", "numpy", "pickle", "tomllib", "csv", "joblib", "marshal", "shelve"}
# `open` is a file's, but for these classes of ours, which read through the doors themselves.
OURS = {"AdapterCheckpoint", "FullModel", "cls"}

DOORS = {
    "files.py": "bytes, text and JSON",
    "checkpoints/tensorfile.py": "tensors: after `regular_file`, and the header against the file's size",
    "runs/config_file.py": "YAML, from the text that files.py read",
}
# Those that may do one thing by themselves, and why it needs no door.
EXCEPTIONS = {
    (
        "checkpoints/atomic.py",
        "open",
    ): "what it has just written, folders for fsync, and a digest after `regular_file`",
    ("checkpoints/atomic.py", "json.loads"): "of the text that json.dumps has just made",
    ("tasks/bases/folder.py", "safe_open"): "headers, after `regular_file`; tasks may not import checkpoints",
    ("runs/inputs.py", "open"): "the ends of a model's files, after `regular_file`",
    ("tasks/python_file.py", "open"): "writes the log of a user's traceback",
    ("engines/decision_log.py", "open"): "appends a line",
    ("engines/folder_lock.py", "open"): "its own lock file, to ask the disk whether it has flock",
    ("engines/verl/process.py", "open"): "appends what verl prints, and reads the end of that for a message",
    ("cli/__init__.py", "open"): "/dev/null, for an output that nobody reads any more",
    ("cli/__init__.py", "fdopen"): "the same, for a stream that was closed before we began",
}


def reads(source: str) -> Iterator[tuple[int, str]]:
    """(line, what is called) of each call in a source text that reads or opens a file, or parses text."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            if node.func.id in {"open", "safe_open", "load_file", "memmap"}:
                yield node.lineno, node.func.id
        elif isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, node.func.value
            owned = getattr(owner, "id", getattr(owner, "attr", ""))  # the last name before the dot
            if name in READS or (name == "open" and owned not in OURS):
                yield node.lineno, name
            elif name in OF_MODULES and owned in MODULES:
                yield node.lineno, f"{owned}.{name}"


def found() -> Iterator[tuple[str, int, str]]:
    """(module, line, call) of all such calls outside of the doors."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        if module not in DOORS:
            yield from ((module, line, call) for line, call in reads(path.read_text(encoding="utf-8")))


def test_no_module_reads_beside_the_doors() -> None:
    wrong = [
        f"{module}:{line} calls {call}: use nextrl.files or checkpoints.tensorfile, or say in EXCEPTIONS why not"
        for module, line, call in found()
        if (module, call) not in EXCEPTIONS
    ]
    assert not wrong, "\n".join(wrong)


def test_every_exception_is_still_needed() -> None:
    assert {(module, call) for module, _, call in found()} == set(EXCEPTIONS)


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "path.open()",
        "(folder / 'a').read_text()",
        "json.loads(text)",
        "yaml.safe_load(text)",
        "torch.load(path)",
        "with safe_open(path, framework='pt') as file: pass",
        "safetensors.torch.load_file(path)",
        "np.load(path)",
        "Model.model_validate_json(data)",
    ],
)
def test_a_reader_is_seen(source: str) -> None:
    assert len(list(reads(source))) == 1


@pytest.mark.parametrize("source", ["read_json(path)", "dense.FullModel.open(path)", "Trajectory.load(path)"])
def test_our_own_names_are_none(source: str) -> None:
    assert not list(reads(source))
