"""The public transfer set: where it comes from, and that no label comes along."""

import dataclasses

import numpy as np
import pytest

from fedkd.dataset import dataset, fingerprint, load
from fedkd.errors import DataError, SpecError
from fedkd.random import generator
from fedkd.records import TransferSet
from fedkd.transfer import check, contained, is_cut, pool, split, transfer, unlabeled


def test_a_split_parts_the_rows_and_depends_on_the_seed_only():
    data = load("digits")
    public, private = split(data, generator(3, "transfer"), size=100)
    again, _ = split(data, generator(3, "transfer"), size=100)
    other, _ = split(data, generator(4, "transfer"), size=100)
    assert (public == again).all() and (public != other).any()
    assert sorted([*public, *private]) == list(range(len(data.x)))
    assert (np.diff(private) > 0).all()


def test_the_order_of_a_split_does_not_tell_the_order_of_the_file():
    public, _ = split(load("digits"), generator(0, "transfer"), size=400)
    assert abs(np.corrcoef(public, np.arange(400))[0, 1]) < 0.2


@pytest.mark.parametrize("size", [-1, 0, 1397, 5000])
def test_a_split_that_leaves_nothing_is_refused_with_both_numbers(size):
    with pytest.raises(DataError, match=rf"size must be in \[1, 1396\] for 1397 train rows, got {size}"):
        split(load("digits"), generator(0, "transfer"), size=size)


def test_a_transfer_set_has_no_place_for_labels():
    assert {field.name for field in dataclasses.fields(TransferSet)} == {"inputs", "fingerprint"}
    made = unlabeled(np.array([[0, 255]], np.uint8))
    assert made.inputs.dtype == np.float32 and made.inputs.tolist() == [[0, 1]]
    assert made.fingerprint == fingerprint(made.inputs)


def test_a_pool_of_your_own_keeps_its_order_and_needs_no_labels(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.savez(tmp_path / "pool.npz", x=x)
    np.savez(tmp_path / "labeled.npz", x=x, y=np.arange(6))
    assert (pool(f"npz:{tmp_path / 'pool.npz'}").inputs == x).all()
    labeled = pool(f"npz:{tmp_path / 'labeled.npz'}")
    assert len(labeled) == 6, "no row is held back for a test part"
    assert labeled.fingerprint == fingerprint(x)


def test_every_data_set_is_a_transfer_set_and_nothing_is_loaded_to_check_it():
    for name in dataset.names():
        assert check(f"{name}:nowhere" if name not in ("digits",) else name).func is dict(dataset)[name]
        assert not is_cut(name)
    for name, part in transfer:
        assert check(name).func is part and is_cut(name)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("splitt", "unknown transfer set 'splitt'. Did you mean 'split'?"),
        ("digit", "Did you mean 'digits'? Known: split, cifar10"),
        ("split(sise=3)", "no option 'sise'. Did you mean 'size'?"),
        ("split(size='many')", "must be int"),
        ("npz", "needs 'path'"),
        ("split(", "cannot read"),
    ],
)
def test_a_wrong_transfer_spec_names_the_nearest(spec, words):
    with pytest.raises(SpecError, match=words.replace("(", r"\(").replace("?", r"\?")):
        check(spec)


def test_rows_are_compared_by_content_whatever_their_type():
    x = np.array([[0, 255], [255, 0], [1, 1]], np.uint8)
    others = np.array([[1, 0], [0, 0]], np.float32)
    assert contained(x, others).tolist() == [False, True, False]
    assert contained(others, x).tolist() == [True, False]
