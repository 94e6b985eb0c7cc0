"""The space in which data are compared: distances, principal components, shapes, dimension."""

import numpy as np
import pytest
from expertise_scene import normal, square, transfer

from fedkd.expertise import (
    intrinsic_dimension,
    kth_distance,
    nearest,
    principal_components,
    shapes,
    space,
)

# Distances.


@pytest.mark.parametrize("k", [1, 2, 5, 30])
def test_the_distance_to_the_kth_neighbor_is_that_of_brute_force(k):
    x, to = normal(50, 3), normal(30, 3, seed=1)
    exact = np.sort(np.linalg.norm(x[:, None].astype(float) - to, axis=2), axis=1)[:, k - 1]
    assert kth_distance(x, to, k) == pytest.approx(exact, rel=1e-5)
    assert (kth_distance(x, to, k, cells=90) == kth_distance(x, to, k)).all()  # three rows at a time


def test_the_distance_of_a_row_to_itself_is_zero_even_far_from_the_origin():
    x = normal(20, 3, at=1000.0)
    assert (kth_distance(x, x, 1) == 0).all()


def test_the_nearest_distances_come_in_order():
    x, to = normal(40, 3), normal(30, 3, seed=1)
    exact = np.sort(np.linalg.norm(x[:, None].astype(float) - to, axis=2), axis=1)[:, :4]
    assert nearest(x, to, 4) == pytest.approx(exact, rel=1e-5)
    assert (nearest(x, to, 4, cells=90) == nearest(x, to, 4)).all()


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_the_intrinsic_dimension_is_that_of_the_sheet_and_not_of_the_space_around_it(dimensions):
    flat = np.random.default_rng(0).random((3000, dimensions)).astype(np.float32)
    sheet = flat @ np.linalg.qr(normal(20, dimensions))[0].T
    assert intrinsic_dimension(sheet) == pytest.approx(dimensions, rel=0.15)
    assert intrinsic_dimension(sheet * 1000) == pytest.approx(intrinsic_dimension(sheet), rel=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 3, 30])
def test_the_intrinsic_dimension_is_a_number_whatever_the_rows(rows):
    assert intrinsic_dimension(np.ones((rows, 4), np.float32)) == 1.0 or rows == 30
    assert 1 <= intrinsic_dimension(np.ones((rows, 4), np.float32)) <= 4
    assert 1 <= intrinsic_dimension(normal(rows, 4)) <= 4


def test_no_rows_have_no_distances():
    assert kth_distance(np.zeros((0, 3), np.float32), normal(4, 3), 1).shape == (0,)


@pytest.mark.parametrize(("rows", "width"), [(200, 6), (6, 200), (50, 1), (60, 1200), (1100, 1030), (1, 3)])
def test_all_principal_components_keep_the_distances(rows, width):
    x = normal(rows, width) * np.linspace(0.1, 3, width, dtype=np.float32) + 5
    z, project = principal_components(transfer(x), max(rows, width))
    some = slice(60)
    exact, found = (np.linalg.norm(a[some, None] - a[None, some], axis=2) for a in (x, z))
    assert found == pytest.approx(exact, rel=1e-3, abs=1e-3)
    assert project(x) == pytest.approx(z, abs=1e-4)


@pytest.mark.parametrize("width", [20, 1200])  # as many as go through a (d, d) matrix, and more
def test_the_leading_component_is_the_direction_of_most_variance(width):
    direction = np.zeros(width, np.float32)
    direction[[1, 3]] = 3 / 5, 4 / 5
    along = normal(500, 1, scale=10.0)
    x = along * direction + 0.1 * normal(500, width, seed=1) + 7
    z, _ = principal_components(transfer(x), 1)
    assert z.shape == (500, 1)
    assert abs(np.corrcoef(z[:, 0], along[:, 0])[0, 1]) > 0.999


def test_images_are_taken_as_rows_of_values():
    x = normal(30, 12)
    flat, _ = principal_components(transfer(x), 4)
    image, project = principal_components(transfer(x.reshape(30, 3, 2, 2)), 4)
    assert np.abs(image) == pytest.approx(np.abs(flat), abs=1e-4)
    assert project(x[:2].reshape(2, 3, 2, 2)) == pytest.approx(image[:2], abs=1e-4)


def bars(*, across, light=1.0):
    x = np.zeros((1, 1, 28, 28), np.float32)
    x[..., ::4, :] = light
    return x if across else x.transpose(0, 1, 3, 2).copy()


def test_the_shapes_of_an_image_are_a_vector_of_cells_and_directions():
    x = np.random.default_rng(0).random((3, 1, 28, 28)).astype(np.float32)
    s = shapes(x)
    assert s.shape == (3, 6 * 6 * 4 * 8)
    assert s.dtype == np.float32
    assert (s >= 0).all() and (s <= 1).all()
    assert (s**4).reshape(3, 36, 32).sum(axis=2).max() <= 1 + 1e-6  # a block has norm one at most, before the root
    assert (shapes(x[1:2]) == s[1:2]).all()


def test_shapes_tell_directions_apart_by_hand():
    # Bars across the image have gradients up and down only: direction pi / 2, the fifth of eight; the others are empty.
    across, down = (shapes(bars(across=across)).reshape(36 * 4, 8) for across in (True, False))
    inner = across.sum(axis=1) > 0
    assert (across[inner].argmax(axis=1) == 4).all() and across[:, [0, 1, 2, 3, 5, 6, 7]].max() < 1e-3
    assert (down[inner].argmax(axis=1) == 0).all() and down[:, 1:].max() < 1e-3


def test_shapes_see_edges_and_not_brightness():
    assert shapes(square(8, ground=0.5, light=1.0)) == pytest.approx(shapes(square(8, light=0.5)), abs=1e-5)
    assert (shapes(square(8, light=0.0)) == 0).all()
    assert shapes(1 - square(8)) == pytest.approx(shapes(square(8)), abs=1e-3)  # a line and its opposite are one
    near = np.linalg.norm(shapes(square(8)) - shapes(square(9)))
    far = np.linalg.norm(shapes(square(8)) - shapes(square(18)))
    assert near < 0.7 * far


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (4, 9, 30)])
def test_images_of_any_size_have_shapes(shape):
    x = np.random.default_rng(0).random((5, *shape)).astype(np.float32)
    assert np.isfinite(shapes(x)).all()
    z, project = space(transfer(x), 3)
    assert z.shape == (5, 3)
    assert project(x) == pytest.approx(z, abs=1e-4)


def test_gray_in_three_channels_is_still_gray():
    x = np.random.default_rng(0).random((2, 1, 28, 28)).astype(np.float32)
    assert shapes(np.repeat(x, 3, axis=1)) == pytest.approx(shapes(x), abs=1e-6)


def test_what_is_no_image_is_compared_as_it_is():
    for x in (normal(20, 6), normal(20, 48).reshape(20, 3, 4, 4)):
        assert (space(transfer(x), 4)[0] == principal_components(transfer(x), 4)[0]).all()
