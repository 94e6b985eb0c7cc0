"""Fixed features: what they see by hand, and that every row is its own business."""

import numpy as np
import pytest

from fedkd import features as module
from fedkd.errors import SpecError
from fedkd.features import build, features, group_norm, in_pieces


def pictures(n=5, shape=(1, 12, 12), seed=0):
    return np.random.default_rng(seed).random((n, *shape), dtype=np.float32)


@pytest.mark.parametrize("name", features.names())
@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 9, 14)])
def test_a_row_depends_on_its_own_example_alone(name, shape):
    x = pictures(shape=shape)
    before = x.copy()
    whole, other = features.build(name)(x), x.copy()
    other[0] = pictures(1, shape, seed=1)[0]
    changed = features.build(name)(other)
    assert whole.dtype == np.float32
    assert whole.ndim == 2
    assert np.isfinite(whole).all()
    assert changed[1:] == pytest.approx(whole[1:], abs=1e-6)
    assert np.abs(changed[0] - whole[0]).max() > 1e-3
    assert features.build(name)(x[2:3])[0] == pytest.approx(whole[2], abs=1e-5)
    assert (x == before).all()
    assert features.build(name)(x[:0]).shape == (0, whole.shape[1])


@pytest.mark.parametrize("name", features.names())
def test_rows_made_piece_by_piece_are_the_same_to_the_bit(name, monkeypatch):
    x, asked = pictures(7), []

    def member(part):
        asked.append(len(part))
        return features.build(name)(part)

    whole = in_pieces(member, x)
    monkeypatch.setattr(module, "PIECE", 3 * 144)
    assert in_pieces(member, x).tobytes() == whole.tobytes()
    assert asked == [7, 3, 3, 1]
    assert in_pieces(member, x[:0]).shape == (0, whole.shape[1])


@pytest.mark.parametrize("name", features.names())
def test_rows_are_bounded_whatever_the_input(name):
    wild = np.concatenate([pictures() * 1e4, pictures() * 0, pictures() - 50])
    length = np.linalg.norm(features.build(name)(wild), axis=1)
    assert (length <= np.sqrt(features.build(name)(wild).shape[1]) + 1e-3).all()


def test_raw_rows_are_shortened_to_length_one_and_never_lengthened():
    assert features.build("raw")(np.array([[3.0, 4.0], [0.3, 0.4]], np.float32)) == pytest.approx(
        np.array([[0.6, 0.8], [0.3, 0.4]])
    )


def test_groups_of_maps_get_mean_zero_and_variance_one_by_hand():
    maps = np.array([[[[1.0, 3.0]], [[5.0, 7.0]], [[2.0, 2.0]], [[4.0, 0.0]]]], np.float32)  # two groups of two maps
    rows = group_norm(maps, 2)
    assert rows[0, :4] == pytest.approx(np.array([-3, -1, 1, 3]) / np.sqrt(5), abs=1e-4)
    assert rows[0, 4:] == pytest.approx(np.array([0, 0, 2, -2]) / np.sqrt(2), abs=1e-4)
    assert group_norm(maps, 3).shape == (1, 8)  # three do not divide four: two groups it is
    assert group_norm(maps, 3) == pytest.approx(rows)


def test_wavelets_are_blind_to_brightness_and_the_low_pass_keeps_it():
    low, half, fine, coarse = module._filters(36, 36, 8)
    assert low[0, 0] == half[0, 0] == pytest.approx(1, abs=1e-5)
    assert np.abs(fine[:, 0, 0]).max() < 1e-6
    assert np.abs(coarse[:, 0, 0]).max() < 1e-6
    gray = module._scatter(np.full((1, 28, 28), 0.7, np.float32), 8)
    assert gray.shape == (1, 81, 7, 7)
    assert gray[:, 0] == pytest.approx(0.7, abs=1e-5)
    assert np.abs(gray[:, 1:]).max() < 1e-5


def test_a_wavelet_answers_to_waves_of_its_own_direction_and_scale():
    place = np.arange(32, dtype=np.float32)
    for wave, best in ((0.75 * np.pi, 0), (0.375 * np.pi, 8)):  # eight fine wavelets, then eight coarse ones
        across = np.tile(np.cos(wave * place), (32, 1))
        maps = module._scatter(np.stack([across, across.T]).astype(np.float32), 8)
        first = maps[:, 1:17, 2:-2, 2:-2].mean(axis=(2, 3))
        assert int(first[0].argmax()) == best
        assert int(first[1].argmax()) == best + 4  # a quarter turn is four of eight directions


def test_the_second_order_sees_how_the_first_one_varies():
    """A fine wave that comes and goes: its envelope is a coarse wave across, which only second-order maps contain."""
    place = np.arange(32, dtype=np.float32)
    steady = np.tile(np.cos(0.75 * np.pi * place), (32, 1))
    beating = steady * (1 + np.cos(0.375 * np.pi * place))[:, None]
    maps = module._scatter(np.stack([steady, beating]).astype(np.float32), 8)
    plain, second = maps[:, 17:, 2:-2, 2:-2].mean(axis=(2, 3)).reshape(2, 8, 8).sum(axis=1)
    assert int((second - plain).argmax()) == 4  # down, whatever the first wavelet
    assert second[4] > 3 * plain[4]


def test_what_is_no_image_is_refused_where_images_are_needed():
    with pytest.raises(SpecError, match=r"'scattering' need images .* got \(4, 7\)"):
        features.build("scattering")(np.zeros((4, 7), np.float32))


def test_features_side_by_side_have_equal_length():
    x = pictures()
    z = build("shapes, scattering")(x)
    assert z.shape[1] == features.build("shapes")(x).shape[1] + features.build("scattering")(x).shape[1]
    half = features.build("shapes")(x).shape[1]
    assert np.linalg.norm(z[:, :half], axis=1) == pytest.approx(np.ones(5), abs=1e-4)
    assert np.linalg.norm(z[:, half:], axis=1) == pytest.approx(np.ones(5), abs=1e-4)
    assert (build("raw")(x) == features.build("raw")(x)).all()
