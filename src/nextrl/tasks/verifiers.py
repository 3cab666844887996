"""Verifiers: how a completion is compared with the answer in a file of prompts.

Each takes (completion, answer) as text and says right or wrong; `VERIFIERS` names them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from decimal import Decimal

from nextrl.errors import needs, require
from nextrl.registry import Registry

Verifier = Callable[[str, str], bool]

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?|[-+]?\.\d+")


def exact(completion: str, answer: str) -> bool:
    """The completion is the answer, white space at both ends aside."""
    return completion.strip() == answer.strip()


def first_line(completion: str, answer: str) -> bool:
    """The completion's first line is the answer: for few-shot prompts, after which a model writes on."""
    return completion.lstrip("\n").split("\n", 1)[0].strip() == answer.strip()


def last_number(text: str) -> Decimal | None:
    """The last number in a text, exactly (`1,234.5` and `1e3` are numbers), or None."""
    found = _NUMBER.findall(text)
    # A model may repeat one digit to the end of its completion; Python's int takes 4300 of them at most.
    return Decimal(found[-1].replace(",", "")) if found else None


def number(completion: str, answer: str) -> bool:
    """The last number of the completion equals the last number of the answer (as in GSM8K's `#### 42`)."""
    said = last_number(completion)
    return said is not None and said == last_number(answer)


def math(completion: str, answer: str) -> bool:
    """The completion's final expression is mathematically equal to the answer, by math-verify."""
    with needs("tasks", "verifier 'math'"):
        from math_verify import parse, verify

    # A completion like 9^9^9^9 needs math-verify's time limits, which use SIGALRM: only a main thread may.
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    gold = parse(_as_latex(answer), parsing_timeout=limit)
    said = parse(completion, parsing_timeout=limit)
    return bool(verify(gold, said, timeout_seconds=limit))


def _as_latex(answer: str) -> str:
    # A bare `\frac{1}{2}` is LaTeX to a reader only: math-verify looks for it between dollar signs.
    return answer if "$" in answer or "\\boxed" in answer else f"${answer}$"


VERIFIERS: Registry[Verifier] = Registry(
    "verifier", {"exact": exact, "first-line": first_line, "number": number, "math": math}
)


def get(name: str) -> Verifier:
    """A verifier by name.

    Raises:
        InputError: there is none of that name, or its library is not installed.
    """
    verifier = VERIFIERS.get(name)
    if name == "math":
        require("math_verify", "tasks", "verifier 'math'")
    return verifier
