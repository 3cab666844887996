"""What a task's Python file does, as far as its text says: its code and that of what it imports from beside it.

Comments, docstrings, line breaks and layout are none of it: who edits those goes on with the same task.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from nextrl.files import read_bytes


def code(path: Path) -> Iterator[bytes]:
    """Name and code of the file, and of all that it imports, and that imports, from the folder it is in.

    Raises:
        InputError: a file of these cannot be read.
    """
    folder = path.absolute().parent
    waiting, seen = [path.absolute()], set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        text = read_bytes(file)
        yield b"" if file == path.absolute() else str(file.relative_to(folder)).encode()
        try:
            tree = ast.parse(text)
            yield repr(_form(tree)).encode()
        except (SyntaxError, ValueError, RecursionError):  # nobody has imported it yet
            yield text
            continue
        for name in sorted(_imported(tree), reverse=True):
            waiting += _beside(name, folder)


def _imported(tree: ast.AST) -> set[str]:
    """The first part of each module's name that is imported anywhere in the code."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _beside(name: str, folder: Path) -> list[Path]:
    """The files of a module that lies in the folder, of a package all; none where another one goes before it."""
    spec = None if name in sys.builtin_module_names else PathFinder.find_spec(name)
    if spec is None:
        return []
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    files = [file for place in places if place.parent == folder for file in sorted(place.rglob("*.py"))]
    origin = Path(spec.origin) if spec.origin else None
    return files or ([origin] if origin and origin.parent == folder and origin.suffix == ".py" else [])


def _form(node: object) -> object:
    """A syntax tree as nested tuples, without docstrings, places, and empty fields, in which Pythons differ."""
    if isinstance(node, list):
        return tuple(map(_form, node))
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    if documented and ast.get_docstring(node, clean=False) is not None:  # type: ignore[arg-type]
        fields["body"] = fields["body"][1:]
    return (type(node).__name__, *((name, _form(value)) for name, value in fields.items()))
