"""Low-rank algebra against dense float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextrl.trajectory.lowrank import LowRank, align_signs, cosine


@st.composite
def matrices(draw, most=40, batch=True):
    """Random LowRank of any small shape (m < q included), graded columns, sometimes rank-deficient or
    zero."""
    m, n, q = (draw(st.integers(1, most)) for _ in range(3))
    lead = draw(st.sampled_from([(), (1,), (3,), (2, 2)])) if batch else ()
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    grade = 10.0 ** (-draw(st.floats(0, 3)) * torch.arange(q) / q)
    left = torch.randn(*lead, m, q, generator=g, dtype=torch.float64) * grade
    right = torch.randn(*lead, n, q, generator=g, dtype=torch.float64)
    if draw(st.booleans()):
        left = left * (torch.rand(q, generator=g) > 0.5)
    return LowRank(left, right)


@settings(max_examples=150, deadline=None)
@given(matrices(), st.integers(1, 8))
def test_top_matches_the_dense_svd(x, k):
    dense = x.dense()
    u0, s0, vh0 = torch.linalg.svd(dense, full_matrices=False)
    t = x.top(k)
    k = t.sigma.shape[-1]
    assert k == min(k, x.rank)
    scale = s0[..., :1]
    torch.testing.assert_close(t.sigma, s0[..., :k], rtol=1e-6, atol=1e-12 * float(scale.max() + 1))
    # D v = sigma u holds for every triple, whatever the gaps.
    assert float((dense @ t.v - t.u * t.sigma[..., None, :]).abs().max()) <= 1e-9 * float(
        scale.max() + 1e-300
    )
    gaps = torch.full_like(s0[..., :k], float("inf"))
    if s0.shape[-1] > 1:
        steps = s0[..., :-1] - s0[..., 1:]
        pad = torch.full_like(s0[..., :1], float("inf"))
        gaps = torch.minimum(torch.cat([pad, steps], -1), torch.cat([steps, s0[..., -1:]], -1))[..., :k]
    clear = (gaps > 1e-3 * scale) & (s0[..., :k] > 1e-6 * scale)
    cos_u = (t.u * u0[..., :k]).sum(-2).abs()[clear]
    cos_v = (t.v * vh0.mT[..., :k]).sum(-2).abs()[clear]
    assert (cos_u >= 1 - 1e-6).all()
    assert (cos_v >= 1 - 1e-6).all()


@settings(max_examples=80, deadline=None)
@given(matrices(), st.integers(1, 12))
def test_recompress_is_the_best_and_reports_what_it_lost(x, rank):
    dense = x.dense()
    s = torch.linalg.svdvals(dense)
    small, lost = x.recompress(rank)
    error = torch.linalg.matrix_norm(small.dense() - dense)
    scale = float(torch.linalg.matrix_norm(dense).max())
    torch.testing.assert_close(
        error, s[..., rank:].square().sum(-1).sqrt(), rtol=1e-6, atol=1e-10 * (scale + 1)
    )
    energy = s.square().sum(-1)
    expected = torch.where(energy > 0, s[..., rank:].square().sum(-1) / energy.clamp_min(1e-300), 0.0)
    torch.testing.assert_close(lost, expected, rtol=1e-6, atol=1e-12)
    assert small.rank <= rank


@settings(max_examples=60, deadline=None)
@given(matrices(batch=False), st.integers(0, 2**31), st.floats(-3, 3))
def test_sums_products_and_norms(x, seed, c):
    g = torch.Generator().manual_seed(seed)
    y = LowRank(
        torch.randn(x.shape[0], 3, generator=g, dtype=torch.float64),
        torch.randn(x.shape[1], 3, generator=g, dtype=torch.float64),
    )
    a, b = x.dense(), y.dense()
    scale = float(a.norm() * b.norm()) + 1e-12
    torch.testing.assert_close((x + y * c).dense(), a + c * b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((x - y).dense(), a - b, rtol=1e-12, atol=1e-12)
    assert float(x.inner(y)) == pytest.approx(float((a * b).sum()), abs=1e-12 * scale)
    assert float((x + y).norm()) == pytest.approx(float((a + b).norm()), rel=1e-9)
    torch.testing.assert_close(x.singular_values(), torch.linalg.svdvals(a)[: x.rank], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("q", [1, 2, 64, 256])
def test_ranks_from_1_to_256(q):
    g = torch.Generator().manual_seed(q)
    x = LowRank(torch.randn(300, q, generator=g), torch.randn(280, q, generator=g))
    dense = x.left.double() @ x.right.double().mT
    s = torch.linalg.svdvals(dense)
    torch.testing.assert_close(x.top(3).sigma, s[: min(3, q)], rtol=1e-9, atol=0)


def test_a_delta_that_nearly_cancels_is_still_exact():
    g = torch.Generator().manual_seed(0)
    left = torch.randn(50, 4, generator=g, dtype=torch.float64)
    right = torch.randn(40, 4, generator=g, dtype=torch.float64)
    tiny = torch.randn(50, 4, generator=g, dtype=torch.float64) * 1e-9
    x = LowRank(torch.cat([left + tiny, -left], 1), torch.cat([right, right], 1))
    exact = torch.linalg.svdvals((left + tiny - left) @ right.mT)
    torch.testing.assert_close(x.top(1).sigma, exact[:1], rtol=1e-6, atol=0)
    assert float(x.norm()) == pytest.approx(float(exact.norm()), rel=1e-6)


def test_zero_deltas_have_zero_vectors_and_no_nan():
    for x in (
        LowRank.zeros(5, 4),
        LowRank(torch.ones(5, 2), torch.ones(4, 2)) - LowRank(torch.ones(5, 2), torch.ones(4, 2)),
    ):
        t = x.top(2)
        assert all(torch.isfinite(part).all() for part in t)
        assert float(t.sigma.max()) == 0.0
        assert float(t.u.abs().max()) == 0.0
        assert float(x.norm()) == 0.0
        assert float(x.recompress(1)[1]) == 0.0


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_a_number_is_not_a_matrix_that_is_zero(broken):
    left, right = torch.ones(2, 5, 2, dtype=torch.float64), torch.ones(2, 4, 2, dtype=torch.float64)
    left[1, 3, 0] = broken
    batch = LowRank(left, right)
    norms = (batch - LowRank(torch.ones_like(left), right)).norm()
    assert float(norms[0]) == 0.0
    assert norms[1].isnan()
    assert batch.norm()[1].isnan()
    spoiled, sound = (LowRank(left[i], right[i]) for i in (1, 0))
    assert math.isnan(cosine([spoiled], [sound]))
    assert math.isnan(cosine([sound, spoiled], [sound, sound]))
    assert cosine([sound - sound], [sound]) == pytest.approx(0.0, abs=1e-12)


def test_equal_singular_values_give_one_orthonormal_choice_and_the_right_plane():
    x = LowRank(torch.eye(6, 3, dtype=torch.float64), torch.eye(5, 3, dtype=torch.float64))
    t = x.top(3)
    torch.testing.assert_close(t.sigma, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(t.u.mT @ t.u, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close((t.u * t.sigma) @ t.v.mT, x.dense())
    assert torch.equal(x.top(3).u, t.u)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.booleans(), st.data())
def test_signs_do_not_depend_on_those_that_the_pairs_came_with(seed, count, referred, data):
    g = torch.Generator().manual_seed(seed)
    u = torch.nn.functional.normalize(torch.randn(count + 1, 9, generator=g), dim=1)
    v = torch.nn.functional.normalize(torch.randn(count + 1, 7, generator=g), dim=1)
    reference = (u[-1], v[-1]) if referred else None
    u, v = u[:-1], v[:-1]
    flips = torch.tensor(data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=count, max_size=count)))
    signs = align_signs(u, v, reference)
    assert set(signs.abs().tolist()) == {1.0}
    assert torch.equal(align_signs(u * flips[:, None], v * flips[:, None], reference) * flips, signs)
    u, v = u * signs[:, None], v * signs[:, None]
    assert ((u[1:] * u[:-1]).sum(1) + (v[1:] * v[:-1]).sum(1) >= -1e-6).all()
    if reference:
        assert float(u[-1] @ reference[0] + v[-1] @ reference[1]) >= -1e-6
    else:
        assert float(u[-1][u[-1].abs().argmax()]) > 0


@pytest.mark.parametrize("degrees", [10, 45])
def test_signs_do_not_flip_along_a_path_that_turns_far(degrees):
    """Twelve pairs in a plane, each turned by `degrees` against the one before, their signs at random."""
    turn = torch.arange(12) * degrees * math.pi / 180
    plane = torch.stack([turn.cos(), turn.sin()], 1)
    u, v = torch.nn.functional.pad(plane, (0, 5)), torch.nn.functional.pad(plane, (2, 1))
    flips = torch.tensor([1.0, -1, -1, 1, -1, 1, 1, 1, -1, -1, 1, -1])[:, None]
    signs = align_signs(u * flips, v * flips, (u[-1], v[-1]))[:, None]
    torch.testing.assert_close(u * flips * signs, u)
    torch.testing.assert_close(v * flips * signs, v)


def test_spans_that_did_not_move_are_passed_over():
    u, v = torch.eye(1, 4).repeat(3, 1), torch.eye(1, 5).repeat(3, 1)
    u[0], v[0] = -u[0], -v[0]
    u[1], v[1] = 0.0, 0.0
    assert align_signs(u, v, (-u[2], -v[2])).tolist() == [1.0, 1.0, -1.0]
    assert align_signs(u * 0, v * 0).tolist() == [1.0, 1.0, 1.0]


def test_an_agreement_that_is_only_rounding_does_not_decide():
    u, v = torch.eye(2, 4), torch.eye(2, 5)
    v[0] = -1e-8
    assert align_signs(u, v).tolist() == [1.0, 1.0]


def test_misfit_shapes_are_quoted():
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(4, 1\)"):
        LowRank(torch.zeros(3, 2), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="cannot add"):
        LowRank.zeros(3, 2) + LowRank.zeros(2, 3)
