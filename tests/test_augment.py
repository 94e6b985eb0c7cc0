"""Augmentation: worked out by hand, and what holds for every member."""

import numpy as np
import pytest

from fedkd.augment import augment, check
from fedkd.errors import SpecError
from fedkd.random import generator

SPECS = {"none": "none", "flip": "flip", "shift": "shift(pixels=1)"}


def batch(n=64, shape=(2, 5, 4)):
    return np.random.default_rng(0).uniform(0.1, 1, (n, *shape)).astype(np.float32)


def views(spec, x, name="a"):
    return augment.build(spec)(x, generator(0, name))


class Fixed:
    """A generator that draws what it is told."""

    def __init__(self, **draws):
        self.draws = draws

    def __getattr__(self, name):
        return lambda *arguments: np.array(self.draws[name])


def test_every_member_has_its_laws_tested():
    assert set(SPECS) == set(augment.names())


@pytest.mark.parametrize("spec", SPECS.values())
def test_shape_and_type_stay_and_nothing_given_is_changed(spec):
    given = batch()
    before = given.copy()
    given.flags.writeable = False
    x = views(spec, given)
    assert x.shape == given.shape and x.dtype == np.float32
    assert (given == before).all()


@pytest.mark.parametrize("spec", SPECS.values())
def test_equal_streams_give_equal_views(spec):
    first, again, other = (views(spec, batch(), name).tobytes() for name in ("a", "a", "b"))
    assert first == again
    assert (first == other) == (spec == "none")


def test_flip_by_hand():
    x = np.array([[[[1.0, 2, 3]]], [[[4, 5, 6]]]], np.float32)
    moved = augment.build("flip")(x, Fixed(random=[0.7, 0.2]))
    assert moved.tolist() == [[[[1, 2, 3]]], [[[6, 5, 4]]]]


def test_about_half_of_the_images_are_flipped():
    x = batch(1000)
    flipped = (views("flip", x) != x).any(axis=(1, 2, 3))
    assert 430 < flipped.sum() < 570


def test_shift_by_hand():
    x = np.array([[[[1.0, 2], [3, 4]]]] * 3, np.float32)
    rng = Fixed(integers=[[1, 0, 2], [1, 1, 0]])  # (down, right) = (1, 1) is the middle: no move
    moved = augment.build("shift(pixels=1)")(x, rng)
    assert moved[:, 0].tolist() == [[[1, 2], [3, 4]], [[0, 0], [1, 2]], [[0, 3], [0, 0]]]


def test_all_shifts_up_to_the_limit_occur_and_none_beyond():
    x = np.zeros((400, 1, 7, 7), np.float32)
    x[:, 0, 3, 3] = 1
    moved = views("shift(pixels=2)", x)
    places = {tuple(int(i) - 3 for i in place) for place in np.argwhere(moved[:, 0])[:, 1:]}
    assert places == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("shift(pixels=0)", "'pixels' must be at least 1, got 0"),
        ("flip | shfit", "unknown augmentation 'shfit'. Did you mean 'shift'"),
    ],
)
def test_what_cannot_be_is_refused_when_checked(spec, sentence):
    with pytest.raises(SpecError, match=sentence):
        check(spec)
    check("flip | shift(pixels=1)")


@pytest.mark.parametrize("spec", ["flip", "shift"])
def test_rows_that_are_no_images_are_not_moved(spec):
    with pytest.raises(SpecError, match=rf"augmentation '{spec}' needs images .* got inputs \(7,\)"):
        views(spec, np.zeros((3, 7), np.float32))
