"""Folders of steps that should hold adapters, as checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from nextrl.checkpoints.dense import READ_BY, holds_full_model
from nextrl.checkpoints.layouts.listing import Numbered
from nextrl.checkpoints.run import Located, Problem


def adapters_among(folders: Sequence[Numbered]) -> tuple[tuple[Located, ...], list[Problem]]:
    """The folders that do not hold a whole model, and those that do as problems if there are others.

    A folder with neither counts as a checkpoint, a broken one, which whoever opens it says. Where every folder holds a
    whole model, all weights were trained: there is no checkpoint and nothing wrong.
    """
    models = {entry for entry in folders if holds_full_model(entry.folder)}
    located = tuple(Located(*entry) for entry in folders if entry not in models)
    problems = [
        Problem(
            entry.folder,
            f"{entry.folder}: a whole model among adapters, through which the run's path cannot be followed; move it "
            f"away, or, if the run trains all weights, the adapters ({READ_BY})",
            entry.step,
        )
        for entry in sorted(models)
    ]
    return located, problems if located else []
