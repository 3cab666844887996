"""Adam's zero point of persistence."""

import pytest
import torch

from nextrl.trajectory.persistence import adam_persistence, excess


@pytest.mark.parametrize(
    ("beta1", "window", "c0"), [(0.0, 10, 0.0), (0.9, 10, 0.525), (0.9, 20, 0.31), (0.95, 10, 0.72)]
)
def test_published_values(beta1, window, c0):
    assert adam_persistence(window, beta1) == pytest.approx(c0, abs=0.005)


def test_against_simulated_momentum():
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(260, 4000, generator=g)
    momentum, updates = torch.zeros(4000), []
    for row in noise:
        momentum = 0.8 * momentum + 0.2 * row
        updates.append(momentum.clone())
    windows = torch.stack(updates[20:]).view(-1, 12, 4000).sum(1)
    cosines = torch.nn.functional.cosine_similarity(windows[1:], windows[:-1], dim=1)
    assert float(cosines.mean()) == pytest.approx(adam_persistence(12, 0.8), abs=0.01)


def test_excess_and_bad_arguments():
    assert excess(1.0, 0.5) == 1.0
    assert excess(0.5, 0.5) == 0.0
    for bad in (lambda: adam_persistence(0), lambda: adam_persistence(5, 1.0), lambda: excess(0.5, 1.0)):
        with pytest.raises(ValueError, match="needs"):
            bad()
