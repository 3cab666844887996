"""Products and combinations of stacks against the plain definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextrl.trajectory import blocks
from nextrl.trajectory.blocks import pair_products, weighted_sums


def stacks(count, rank, length, dtype):
    """The same values in both memory layouts."""
    g = torch.Generator().manual_seed(count * 1000 + length)
    plain = torch.randn(count, rank, length, generator=g).to(dtype)
    return plain, plain.mT.contiguous().mT


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12),
    st.sampled_from([1, 63, 64, 65, 200]),
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
)
def test_products_of_any_pairs(pairs, length, dtype):
    for stack in stacks(5, 3, length, dtype):
        found = pair_products(stack, sorted(pairs))
        for product, (i, j) in zip(found, sorted(pairs), strict=True):
            torch.testing.assert_close(product, stack[i].double() @ stack[j].double().T)


@pytest.mark.parametrize("piece", [1, 1 << 17])
def test_combinations_add_up_by_row(monkeypatch, piece):
    monkeypatch.setattr(blocks, "PIECE", piece)
    weights = torch.randn(5, 2, 3, dtype=torch.float64)
    rows = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 0], [1, 1]])
    for stack in stacks(5, 3, 150, torch.float32):
        expected = torch.zeros(3, 150, dtype=torch.float64)
        for t in range(5):
            for k in range(2):
                expected[rows[t, k]] += weights[t, k] @ stack[t].double()
        torch.testing.assert_close(
            weighted_sums(stack, weights, rows, 3).double(), expected, rtol=1e-4, atol=1e-4
        )
