"""The option `--device` of verbs that answer prompts."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[
    str | None,
    typer.Option(help="Where prompts are answered: cpu, cuda, cuda:1, mps ...; CUDA where there is one."),
]
