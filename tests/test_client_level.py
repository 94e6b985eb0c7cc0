"""Client-level privacy: what one client adds is bounded, noise has the scale that was paid for, the rest is free."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedkd.codec import encode_release
from fedkd.privacy import client_level
from fedkd.privacy.client_level import (
    NoisyMean,
    bits_for,
    blur_reach,
    blurred,
    bounded,
    denoise,
    even_sized,
    from_blurred,
    full_clip,
    noisy_mean,
    noisy_weights,
    protected,
    share,
    weighted,
    weighted_share,
)
from fedkd.privacy.noise import SeededEntropy
from fedkd.records import Query, Release

A = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
B = np.array([[0.0, 1.0, 0.0], [0.2, 0.2, 0.6]])


class NoNoise:
    """Entropy of which nothing is asked: the noise itself is replaced by zeros."""

    private = False


def test_two_clients_and_three_classes_by_hand():
    # Centered: A (2/3, -1/3, -1/3), (-1/3, 1/6, 1/6), norm^2 2/3 + 1/6. Two bits: quarters, toward zero.
    quarters = share(A, np.ones(2), clip=10.0, bits=2)
    assert quarters.tolist() == [[2, -1, -1], [-1, 0, 0]]
    mean = noisy_mean(
        [quarters, share(B, np.ones(2), clip=10.0, bits=2)], np.zeros((2, 3), np.int64), clients=2, bits=2, sigma=0.0
    )
    assert mean.p * 24 == pytest.approx(np.array([[8 + 3 * (2 - 1), 8 + 3 * (-1 + 2), 8 + 3 * (-1 - 1)], [5, 8, 11]]))


def test_a_client_that_is_silent_on_a_row_adds_nothing_there():
    silent = share(np.full((2, 3), np.nan), np.array([0.0, 0.0]), clip=10.0, bits=8)
    assert (silent == 0).all()
    assert (share(A, np.array([1.0, 0.0]), clip=10.0, bits=8)[1] == 0).all()


def test_a_long_share_is_cut_as_one_vector():
    whole = share(A, np.ones(2), clip=100.0, bits=20) / 2.0**20
    cut = share(A, np.ones(2), clip=0.5, bits=20) / 2.0**20
    assert np.linalg.norm(cut) == pytest.approx(0.5, abs=1e-5)
    assert cut / np.linalg.norm(cut) == pytest.approx(whole / np.linalg.norm(whole), abs=1e-5)


@given(
    hnp.arrays(np.float64, (4, 3), elements=st.floats(-1e6, 1e6)),
    hnp.arrays(np.float64, (4,), elements=st.floats(0, 1e9)),
    st.floats(1e-3, 10),
    st.integers(0, 30),
)
def test_no_client_adds_more_than_the_clip_whatever_it_says(p, w, clip, bits):
    whole = share(p, w, clip=clip, bits=bits).astype(object)
    assert int((whole**2).sum()) <= (clip * 2.0**bits) ** 2


def test_the_full_clip_cuts_no_distribution_and_is_reached_by_votes():
    votes = np.eye(10)[np.arange(50) % 10]
    clip = full_clip(50, 10)
    assert clip == pytest.approx(math.sqrt(50 * 0.9))
    assert share(votes, np.ones(50), clip=clip, bits=20).max() == pytest.approx(0.9 * 2**20, rel=1e-6)


@pytest.mark.parametrize("noise", [0.003, 1.0, 80.0, 1e6])
def test_noise_is_thousands_of_units_wide(noise):
    assert noise * 2.0 ** bits_for(noise) >= client_level.NOISE_UNITS
    assert bits_for(noise) == 0 or noise * 2.0 ** bits_for(noise) < 2 * client_level.NOISE_UNITS


def ballots(clients, rows=60, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Release(rng.dirichlet(np.ones(classes), rows).astype(np.float32), np.ones(rows, np.float32))
        for _ in range(clients)
    ]


def whole_noise(monkeypatch, noise_multiplier, clip=1.0, rows=60, classes=4):
    """Return the noise that reaches the noisy mean, before it is smoothed, in units of one client's sensitivity."""
    seen = []
    monkeypatch.setattr(client_level, "denoise", lambda mean, features: seen.append(mean) or mean.p)
    for seed in range(30):
        protected(
            [],
            np.zeros((rows, 2)),
            classes=classes,
            noise_multiplier=noise_multiplier,
            clip=clip,
            clients=7,
            entropy=SeededEntropy(np.random.default_rng(seed)),
        )
    noise = np.concatenate([(mean.p - 1 / classes).ravel() for mean in seen]) * 7
    assert seen[0].sd * 7 == pytest.approx(noise_multiplier * clip * full_clip(rows, classes), rel=1e-9)
    return noise / (clip * full_clip(rows, classes))


@pytest.mark.parametrize(("multiplier", "clip"), [(1.39, 1.0), (3.73, 0.5)])
def test_the_noise_has_the_scale_that_was_paid_for(monkeypatch, multiplier, clip):
    # 7200 draws: the standard deviation is within five of its own, 4.2 %; a factor of sqrt(2) is far outside.
    assert np.std(whole_noise(monkeypatch, multiplier, clip)) == pytest.approx(multiplier, rel=0.042)


def test_with_one_client_more_the_clean_sum_moves_by_at_most_the_clip():
    clip, bits = full_clip(60, 4), 12
    for release in ballots(5):
        alone = share(release.p, release.w, clip=clip, bits=bits)
        assert np.linalg.norm(alone) <= clip * 2.0**bits


def test_smoothing_reads_the_noisy_mean_and_public_features_only():
    rng = np.random.default_rng(0)
    mean, features = NoisyMean(rng.normal(0.25, 0.3, (50, 4)), 0.3), rng.normal(size=(50, 5))
    p = denoise(mean, features)
    assert p.dtype == np.float32 and (p >= 0).all()
    assert p.sum(axis=1) == pytest.approx(np.ones(50), abs=1e-5)


def test_smoothing_finds_labels_under_noise_and_leaves_clean_ones_alone():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2000, 10))
    truth = (features @ rng.normal(size=(10, 4))).argmax(axis=1)
    clean = np.eye(4)[truth] * 0.6 + 0.1
    noisy = NoisyMean(clean + rng.normal(0, 1.0, clean.shape), 1.0)
    assert (noisy.p.argmax(axis=1) == truth).mean() < 0.5
    assert (denoise(noisy, features).argmax(axis=1) == truth).mean() > 0.75
    still = NoisyMean(clean + rng.normal(0, 0.01, clean.shape), 0.01)
    assert np.abs(denoise(still, features) - clean).mean() < 0.02


def test_a_round_that_asks_nothing_costs_nothing():
    assert protected(
        [], np.zeros((0, 2)), classes=3, noise_multiplier=1.0, clip=1.0, clients=2, entropy=NoNoise()
    ).shape == (0, 3)  # fmt: skip


# Weighted.


def test_two_weighted_clients_and_three_classes_by_hand():
    # Weights 1 and 1/16 of the largest, to the power 1/4: 1 and 1/2. The last column holds them, times the balance.
    v = bounded(np.array([32.0, 2.0]), 0.25)
    assert v == pytest.approx([1, 0.5])
    one = weighted_share(A, np.array([32.0, 2.0]), clip=1.0, bits=30, power=0.25, balance=0.5) / 2.0**30
    raw = np.array([[2 / 3, -1 / 3, -1 / 3, 0.5], [-1 / 6, 1 / 12, 1 / 12, 0.25]])
    assert one == pytest.approx(raw / np.linalg.norm(raw), abs=1e-8)
    two = weighted_share(B, np.array([1.0, 0.0]), clip=1.0, bits=30, power=0.25, balance=0.5) / 2.0**30
    assert (two[1] == 0).all() and np.linalg.norm(two) == pytest.approx(1.0)


@given(
    hnp.arrays(np.float64, (4, 3), elements=st.floats(-1e6, 1e6)),
    hnp.arrays(np.float64, (4,), elements=st.floats(0, 1e300) | st.just(np.inf) | st.just(np.nan)),
    st.floats(0.01, 1),
    st.floats(1e-3, 10),
    st.integers(0, 30),
)
def test_no_weights_make_a_client_longer_than_the_clip(p, w, power, balance, bits):
    whole = weighted_share(p, w, clip=1.0, bits=bits, power=power, balance=balance).astype(object)
    assert int((whole**2).sum()) <= 4**bits
    assert ((bounded(w, power) >= 0) & (bounded(w, power) <= 1)).all()


def test_only_the_ratios_of_a_clients_own_weights_count():
    w = np.array([3.0, 0.5])
    one, other = (weighted_share(A, c * w, clip=1.0, bits=24, power=0.5, balance=0.1) for c in (1.0, 1e-20))
    assert np.abs(one - other).max() <= 1


def summed(releases, noise_multiplier, **options):
    options = {"power": 1.0, "balance": 0.5, "entropy": SeededEntropy(np.random.default_rng(0)), **options}
    return noisy_weights(releases, 2, classes=3, noise_multiplier=noise_multiplier, **options)


def test_the_weighted_sum_has_the_noise_that_was_paid_for_and_moves_by_one():
    release = Release(A.astype(np.float32), np.ones(2, np.float32))
    one, none = (summed([release] * n, 1e-6)[0] for n in (1, 0))
    assert np.linalg.norm(one - none) == pytest.approx(1.0, abs=1e-4)
    entropy = SeededEntropy(np.random.default_rng(1))
    draws = np.concatenate([summed([], 0.6, entropy=entropy)[0].ravel() for _ in range(500)])
    assert np.std(draws) == pytest.approx(0.6, rel=0.06)  # five deviations of 4000 draws


def test_a_weighted_teacher_follows_who_knows_the_row():
    says = [np.tile(row, (40, 1)).astype(np.float32) for row in ([0.9, 0.1, 0.0], [0.1, 0.9, 0.0])]
    knows = [np.where(np.arange(40) < 20, *w).astype(np.float32) for w in ((1.0, 1e-8), (1e-8, 1.0))]
    ballots = [Release(p, w) for p, w in zip(says, knows, strict=True)] * 5
    features = (np.arange(40)[:, None] < 20).astype(np.float32)
    entropy = SeededEntropy(np.random.default_rng(0))
    teacher = weighted(ballots, features, classes=3, noise_multiplier=0.02, power=0.5, balance=0.5, entropy=entropy)
    assert teacher[:20].mean(axis=0) == pytest.approx([0.9, 0.1, 0.0], abs=0.05)
    assert teacher[20:].mean(axis=0) == pytest.approx([0.1, 0.9, 0.0], abs=0.05)
    nobody = weighted([], features, classes=3, noise_multiplier=0.02, power=0.5, balance=0.5, entropy=entropy)
    assert nobody.sum(axis=1) == pytest.approx(np.ones(40), abs=1e-5)


@pytest.mark.parametrize("w", [[0.0, 0.0], [3.0, 0.0], [1.0, 1.0], [1e-20, 1e20]])
def test_frames_of_weighted_ballots_are_all_alike_in_size_and_leave_no_row_out(w):
    query = Query(1, np.arange(2), 3, "00" * 32)
    p, v = even_sized(A.astype(np.float32), np.array(w, np.float32))
    assert v.min() > 0 and v.max() == 1 and v[0] != v[1]
    usual = Release(A.astype(np.float32), np.array([0.3, 0.7], np.float32))
    assert len(encode_release(Release(p, v), query, 3)) == len(encode_release(usual, query, 3))
    assert p == pytest.approx(A if any(w) else np.full((2, 3), 1 / 3))


# Noise of a client's own.


def test_a_blurred_ballot_is_a_distribution_whose_noise_is_as_large_as_all_labels_together():
    rows, z = 50, 0.6
    p = np.tile([[0.7, 0.2, 0.1]], (rows, 1)).astype(np.float32)
    entropy = SeededEntropy(np.random.default_rng(0))
    many = np.stack([blurred(p, z, entropy) for _ in range(60)])
    assert many.min() >= 0 and many.sum(axis=2) == pytest.approx(np.ones((60, rows)), abs=1e-5)
    stretch = 3 * blur_reach(rows, z)
    # Rows are made to sum to 1, which takes a third of the noise away.
    assert np.std((many - 1 / 3) * stretch) == pytest.approx(z * math.sqrt(2 * rows) * math.sqrt(2 / 3), rel=0.05)
    assert ((many - 1 / 3) * stretch).mean(axis=(0, 1)) == pytest.approx(p[0] - 1 / 3, abs=0.5)


def test_the_mean_of_blurred_ballots_is_that_of_the_ballots():
    p = np.repeat([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]], 10, axis=0).astype(np.float32)
    entropy = SeededEntropy(np.random.default_rng(0))
    ballots = [Release(blurred(p, 0.02, entropy), np.ones(20, np.float32)) for _ in range(50)]
    silent = Release(np.full((20, 3), 1 / 3, np.float32), np.zeros(20, np.float32))
    teacher = from_blurred([*ballots, silent], np.repeat([[0.0], [1.0]], 10, axis=0), classes=3, noise_multiplier=0.02)
    assert teacher == pytest.approx(p, abs=0.05)
    assert np.isnan(from_blurred([silent], np.ones((20, 1)), classes=3, noise_multiplier=0.02)).all()
