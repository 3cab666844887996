"""Hostile inputs by kind, drawn from a seed: files that are none, JSON and headers that lie, values that no type stops.

Each case is drawn from its own generator, so that a failure's number alone makes it again.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import random
import shutil
import signal
import socket
import struct
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import lora_runs
from nextrl.errors import LONGEST, InputError

# Written as 5000 digits, as 1e400 and as 3000 lists inside each other, which are no Python values.
DIGITS, FLOAT, DEEP = "@@digits@@", "@@float@@", "@@deep@@"
SEED = os.environ.get("NEXTRL_HOSTILE_SEED", "0")
MEMORY = 1_500_000_000  # bytes of address space beyond what a process had when the cases began
SECONDS = 20.0  # for one case, on a machine that does other things too


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**34,
    2**63,
    10**18,
    10**30,
    -(10**30),
    DIGITS,
    FLOAT,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x",
    "x" * 5000,
    "\0",
    "\ud800",
    "\u202egnp.exe",
    "\x1b[2J\x1b]0;title\x07",
    "[bold]a[/bold]",
    "[/nope]",
    "<script>alert(1)</script>",
    "../../../etc/passwd",
    "/dev/zero",
    "a\nb",
    "(a+)+$",
    "(.*.*.*.*.*.*.*)*x",
    "(" * 500,
    "nan",
    "1e400",
    [],
    {},
    [[]],
    [None],
    [1, "a", None],
    [1] * 300,
    {"a": {"b": [1]}},
    {"": 0},
    {"default": True},
    nested(30),
    nested(100),
    DEEP,
)


def dumps(value: Any) -> bytes:
    """JSON that Python would not write: of any depth, with digits and floats beyond what it reads."""
    text = json.dumps(value)
    for mark, written in ((DIGITS, "9" * 5000), (FLOAT, "1e400"), (DEEP, "[" * 3000 + "]" * 3000)):
        text = text.replace(f'"{mark}"', written)
    return text.encode()


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every node of a tree of dictionaries and lists."""
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for i in range(min(len(value), 5)):
            yield from places(value[i], (*at, i))


def put(tree: Any, at: tuple[Any, ...], value: Any) -> Any:
    """The tree with one node replaced."""
    if not at:
        return value
    tree = copy.copy(tree)
    tree[at[0]] = put(tree[at[0]], at[1:], value)
    return tree


def mutated(tree: Any, draw: random.Random) -> Any:
    """One to three nodes replaced by a hostile value, removed, or given a hostile key beside them."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at = draw.choice(list(places(tree)))
        how = draw.random()
        if at and how < 0.1 and isinstance(at[-1], str):
            parent = tree
            for part in at[:-1]:
                parent = parent[part]
            tree = put(tree, at[:-1], {k: v for k, v in parent.items() if k != at[-1]})
        elif how < 0.2 and isinstance(tree, dict):
            key = draw.choice([v for v in VALUES if isinstance(v, str)])
            tree = {**tree, key: draw.choice(VALUES)}
        else:
            tree = put(tree, at, draw.choice(VALUES))
        if not isinstance(tree, dict | list):
            return tree
    return tree


KINDS = (
    *("pipe", "folder", "/dev/zero", "/dev/tty", "loop", "nowhere", "missing", "empty", "sparse", "random"),
    *("cut", "bits", "bits", "UTF-16", "mark", "twice", "CRLF"),
)


def no_file(path: Path, draw: random.Random) -> str:
    """Put something that is no ordinary file, or no text, in the place of a file; says what."""
    kind = draw.choice(KINDS)
    replace(path, kind, draw)
    return kind


def replace(path: Path, kind: str, draw: random.Random | None = None) -> None:
    """Put what `kind` names in the place of a file."""
    draw = draw or random.Random(0)
    old = path.read_bytes() if path.is_file() else b""
    if path.is_symlink() or path.exists():
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("/dev/zero", "/dev/tty"):
        path.symlink_to(kind)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "socket":
        at = os.getcwd()
        os.chdir(path.parent)  # a socket's path is at most 107 bytes long
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as made:
            made.bind(path.name)
        os.chdir(at)
    elif kind == "nowhere":
        path.symlink_to(path.with_name("nowhere-at-all"))
    elif kind == "empty":
        path.touch()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2**35)
    elif kind == "random":
        path.write_bytes(draw.randbytes(draw.randrange(1, 3000)))
    elif kind == "cut":
        path.write_bytes(old[: draw.randrange(len(old) + 1)])
    elif kind == "bits":
        data = bytearray(old)
        for _ in range(draw.randrange(1, 6)):
            if data:
                data[draw.randrange(min(len(data), 4000))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(data))
    elif kind == "UTF-16":
        path.write_bytes(old.decode("latin-1").encode("utf-16"))
    elif kind == "mark":
        path.write_bytes(b"\xef\xbb\xbf" + old)
    elif kind == "twice":
        path.write_bytes(old + old)
    elif kind == "CRLF":
        path.write_bytes(old.replace(b"\n", b"\r\n"))


def spoil_json(path: Path, draw: random.Random) -> str:
    """Mutate a JSON file."""
    if draw.random() < 0.3:
        return no_file(path, draw)
    value = mutated(json.loads(path.read_bytes()), draw)
    path.write_bytes(dumps(value))
    return f"JSON {str(value)[:200]}"


def spoil_header(path: Path, draw: random.Random) -> str:
    """Mutate a safetensors header."""
    if draw.random() < 0.25:
        return no_file(path, draw)
    if draw.random() < 0.25:
        return spoil_values(path, draw)
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = mutated(json.loads(data[8 : 8 + length]), draw)
    if isinstance(header, dict) and draw.random() < 0.3:
        old = draw.choice(list(header))
        header = {draw.choice(NAMES).format(old) if key == old else key: item for key, item in header.items()}
    if draw.random() < 0.1:
        for part in header.values() if isinstance(header, dict) else ():
            if isinstance(part, dict) and isinstance(part.get("shape"), list):
                part["shape"] = [0, *part["shape"][1:]]
    text = dumps(header)
    claimed = len(text) if draw.random() < 0.9 else draw.choice((0, 2**62, 2**64 - 1, len(text) + 10**6))
    path.write_bytes(struct.pack("<Q", claimed) + text + data[8 + length :])
    return f"header {text[:200]!r}"


def spoil_values(path: Path, draw: random.Random) -> str:
    """Other numbers under a good header: one tensor, or all."""
    state = load_file(path)
    chosen = list(state) if draw.random() < 0.5 else [draw.choice(list(state))]
    value = draw.choice(
        (0.0, 1.0, -1.0, 1e-42, 1e-30, 1e-20, 1e10, 1e14, 1e20, 3e38, float("nan"), float("inf"))
    )
    dtype = draw.choice((torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64))
    for name in chosen:
        noise = torch.rand(state[name].shape, generator=torch.Generator().manual_seed(draw.randrange(9)))
        state[name] = (noise * value if draw.random() < 0.5 else torch.full_like(noise, value)).to(dtype)
    save_file(state, path)
    return f"values {value} in {len(chosen)} tensors as {dtype}"


def save_tensors(state: dict[str, torch.Tensor], path: Path) -> None:
    """As safetensors' `save_file`, and complex64 too, which its lowest version does not write."""
    save_file(
        {k: torch.view_as_real(t).contiguous() if t.is_complex() else t for k, t in state.items()}, path
    )
    if not any(tensor.is_complex() for tensor in state.values()):
        return
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    for name, tensor in state.items():
        if tensor.is_complex():
            header[name] |= {"dtype": "C64", "shape": list(tensor.shape)}
    text = dumps(header)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


NAMES = (
    "{}\n",
    "{}\x1b[2J",
    "[bold]{}[/bold]",
    "_orig_mod.{}",
    "base_model.model.{}",
    "{}.lora_A.weight",
    "{}²1²",
    "",
)


def spoil_pickle(path: Path, draw: random.Random) -> str:
    """Replace what `torch.save` wrote."""
    kind = draw.choice(["no file", "bits", "value", "value", "value", "compressed", "strides", "code", "old"])
    if kind == "bits":
        data = bytearray(path.read_bytes())
        for _ in range(draw.randrange(1, 9)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(data))
    elif kind == "value":
        group = {"betas": draw.choice([*VALUES[:21], (0.9, 0.99), ("a", "b"), (), [float("nan")], {1: 2}])}
        groups = draw.choice([[group], [], group, [[]], [draw.choice(VALUES)], None])
        torch.save(draw.choice([{"param_groups": groups}, groups, draw.choice(VALUES[:12])]), path)
    elif kind == "compressed":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
            archive.writestr("archive/data/0", b"\0" * 50_000_000)
    elif kind == "strides":
        torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, path)
    elif kind == "code":
        buffer = io.BytesIO()
        torch.save({"x": _Runs()}, buffer)
        path.write_bytes(buffer.getvalue())
    elif kind == "old":
        torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    else:
        return no_file(path, draw)
    return f"pickle {kind}"


class _Runs:
    """Its pickle would make a file if it were ever run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed-by-a-pickle",)


def write_template(folder: Path) -> Path:
    """A good run with what a trainer leaves beside its adapters."""
    lora_runs.write_run(
        folder,
        lora_runs.lora(rank_pattern={"down_proj": 2}, modules_to_save=["lm_head"]),
        steps=(10, 20, 30, 40),
    )
    for step in (10, 20, 30, 40):
        place = folder / f"checkpoint-{step}"
        log = [{"step": s, "reward": 0.1 + s / 100, "loss": 0.1} for s in range(1, step + 1)]
        (place / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": log}))
        (place / "nextrl.json").write_text(json.dumps({"written_by": "nextrl", "method": "none", "alpha": 0}))
        torch.save(
            {"state": {}, "param_groups": [{"betas": (0.9, 0.99), "lr": 1e-4}]}, place / "optimizer.pt"
        )
    return folder


FILES: dict[str, Callable[[Path, random.Random], str]] = {
    "adapter_config.json": spoil_json,
    "adapter_model.safetensors": spoil_header,
    "trainer_state.json": spoil_json,
    "nextrl.json": spoil_json,
    "optimizer.pt": spoil_pickle,
}
FOLDERS = (
    "checkpoint-1000000000000000000000000000000",
    "checkpoint-010",
    "checkpoint-10\n",
    "checkpoint-٣",
    "checkpoint-0",
)


def spoil_run(run: Path, draw: random.Random) -> str:
    """Mutate one file of one or of every checkpoint, or the names of the folders."""
    if draw.random() < 0.08:
        (run / f"checkpoint-{draw.choice((10, 40))}").rename(run / draw.choice(FOLDERS))
        return "a folder's name"
    name = draw.choice([*FILES, "adapter_config.json", "adapter_model.safetensors"])
    folders = sorted(run.glob("checkpoint-*"))
    told, state = "", draw.getstate()
    for folder in folders if draw.random() < 0.5 else [draw.choice(folders)]:
        inner = random.Random(str(state)) if draw.random() < 0.7 else draw
        told = f"{name}: {FILES[name](folder / name, inner)}"
    return told


class TooSlow(AssertionError):
    """A case that ran past `SECONDS`."""


@contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Raise in the main thread after so many seconds; Python's own regular expressions can be interrupted so."""

    def late(number: int, frame: object) -> None:
        raise TooSlow(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def complaint(message: str) -> str | None:
    """What is wrong with a refusal's text, None where it is one printable line of bounded length."""
    if "\n" in message or not message.isprintable():
        return f"not one printable line: {message!r}"
    return None if 0 < len(message) <= LONGEST + 10 else f"{len(message)} characters"


def attempt(action: Callable[[], object]) -> tuple[str, str]:
    """("taken" | "refused" | "broken", text) of one case."""
    try:
        with bounded():
            action()
    except InputError as error:
        wrong = complaint(str(error))
        return ("broken", wrong) if wrong else ("refused", str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "broken", "".join(traceback.format_exception(error))[-3000:]
    return "taken", ""


def listing(folder: Path) -> list[str]:
    """Names of all that is in a folder, without following links."""
    return sorted(
        os.path.join(place, name) for place, inner, files in os.walk(folder) for name in inner + files
    )


def fresh(template: Path, place: Path) -> Path:
    """A new copy of the template."""
    if place.is_symlink() or place.exists():
        shutil.rmtree(place)
    shutil.copytree(template, place)
    return place


def in_child(work: Callable[[], dict[str, Any]], seconds: float, memory: int = MEMORY) -> dict[str, Any]:
    """Run in a forked process that may take `memory` bytes more than it has, and give back what it returns."""
    import resource

    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(int(seconds))
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found = work()
            found["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000
            with os.fdopen(writer, "w") as file:
                json.dump(found, file)
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    status = os.waitpid(child, 0)[1]
    if status:
        return {"broken": [f"the process died: status {status}"]}
    found = json.loads(text)
    assert isinstance(found, dict)
    return found
