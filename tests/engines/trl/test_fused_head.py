"""The fused head at labelled columns only: TRL's numbers and gradients, for fewer projected positions."""

from __future__ import annotations

import inspect

import pytest
import torch
from trl.kernels import chunked_logprob
from trl.trainer.utils import add_fused_lm_head

from nextrl.engines.trl.fused_head import score_labelled_columns
from prefix_batches import SHOTS, batch, llama


def scored(trimmed: bool, labels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor):
    model = llama()
    add_fused_lm_head(model, temperature=0.7)
    if trimmed:
        score_labelled_columns(model)
    out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    out.log_probs[:, -3:].sum().backward()
    return out.log_probs, model.model.layers[0].mlp.up_proj.weight.grad, model


def test_the_log_probabilities_and_gradients_that_trl_reads_are_the_same():
    ids, mask = batch([[*SHOTS, 5], [*SHOTS, 6, 7]], group=3, completions=3)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-3] = -100
    expected, gradient, _ = scored(False, labels, ids, mask)
    found, again, _ = scored(True, labels, ids, mask)
    assert found.shape == (6, 3)
    torch.testing.assert_close(found, expected[:, -3:])
    torch.testing.assert_close(again, gradient)


def test_only_labelled_columns_are_projected(monkeypatch):
    seen: list[int] = []
    tile = chunked_logprob._forward_tile
    monkeypatch.setattr(
        chunked_logprob, "_forward_tile", lambda x, *a, **k: (seen.append(len(x)), tile(x, *a, **k))[1]
    )
    ids, mask = batch([[*SHOTS, 5], [*SHOTS, 6, 7]], group=3, completions=3)
    labels = ids.clone()
    labels[:, :-3] = -100
    for trimmed in (False, True):
        scored(trimmed, labels, ids, mask)
    assert seen == [ids.numel() - len(ids), 3 * len(ids)]


@pytest.mark.parametrize("case", ["no labels", "no head", "nothing labelled"])
def test_other_calls_go_through_unchanged(case):
    ids, mask = batch([[*SHOTS, 5], [*SHOTS, 6, 7]], group=2)
    arguments = {"input_ids": ids, "attention_mask": mask}
    if case != "no labels":
        arguments["labels"] = torch.full_like(ids, -100) if case == "nothing labelled" else ids
    fused = {"fused_lm_head": True} if case == "nothing labelled" else {}
    outs = []
    for trims in (False, True):
        model = llama()
        add_fused_lm_head(model)
        if trims:
            score_labelled_columns(model)
        outs.append(model(**arguments, **fused))
    name = "log_probs" if case == "nothing labelled" else "logits"
    assert torch.equal(outs[0][name], outs[1][name])


def test_signatures_stay_readable():
    model = llama()
    before = inspect.signature(model.forward), inspect.signature(model.model.forward)
    score_labelled_columns(model)
    assert (inspect.signature(model.forward), inspect.signature(model.model.forward)) == before
