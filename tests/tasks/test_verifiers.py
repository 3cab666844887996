"""Verifiers by name."""

from __future__ import annotations

import threading

import pytest

from nextrl.errors import InputError
from nextrl.tasks import verifiers


@pytest.mark.parametrize(
    ("name", "completion", "answer", "right"),
    [
        ("exact", " yes\n", "yes", True),
        ("exact", "yes, indeed", "yes", False),
        ("first-line", "yes\nand more", "yes", True),
        ("first-line", "and more\nyes", "yes", False),
        ("number", "so 3 and 4 make 7.", "7", True),
        ("number", "so 3 and 4 make 7.", "#### 7.0", True),
        ("number", "1,234.5", "1234.5", True),
        ("number", "it is -.5", "-0.5", True),
        ("number", "1e3", "1000", True),
        ("number", "7 or 8", "7", False),
        ("number", "seven", "7", False),
        ("number", "seven", "eight", False),
        ("number", "", "7", False),
        ("number", "1e999999999", "7", False),
        ("number", "9" * 5000, "7", False),
        ("number", "so " + "9" * 5000, "9" * 5000, True),
        ("number", "9" * 5000 + "8", "9" * 5001, False),
        ("number", "0.10000000000000000000000000000000000001", "0.1", False),
        ("math", r"so \boxed{\frac{2}{4}}", r"\frac{1}{2}", True),
        ("math", "The answer is $x^2+2x+1$", "(x+1)^2", True),
        ("math", "0.5", "1/2", True),
        ("math", "5", "6", False),
        ("math", "no idea", "6", False),
    ],
)
def test_right_and_wrong(name: str, completion: str, answer: str, right: bool) -> None:
    assert verifiers.get(name)(completion, answer) is right


def test_math_works_outside_the_main_thread() -> None:
    said: list[bool] = []
    thread = threading.Thread(target=lambda: said.append(verifiers.math("0.5", "1/2")))
    thread.start()
    thread.join()
    assert said == [True]


def test_an_unknown_verifier_lists_those_there_are() -> None:
    with pytest.raises(
        InputError, match=r"unknown verifier 'maths'; did you mean math\? known: exact, .*math"
    ):
        verifiers.get("maths")
