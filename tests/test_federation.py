"""Who holds what: apart, complete, labels dropped, and alike for everyone who knows the seed."""

import numpy as np
import pytest

from fedkd.dataset import load
from fedkd.errors import DataError
from fedkd.federation import federation
from fedkd.transfer import contained

SPLIT = "split(size=400)"


def digits(transfer=SPLIT, partition="dirichlet(alpha=0.3)", clients=8, seed=0):
    return federation("digits", transfer, partition, clients, seed)


def repeated(x):
    return len(x) - len({row.tobytes() for row in x})


def test_no_private_row_and_no_test_row_is_public():
    data = load("digits")
    assert repeated(np.concatenate([data.x, data.x_test])) == 0, "else the content below could agree by itself"
    made = digits()
    pooled, _ = made.pooled()
    assert not contained(pooled, made.transfer.inputs).any()
    assert not contained(made.test()[0], made.transfer.inputs).any()
    assert not contained(pooled, made.test()[0]).any()


def test_together_the_clients_and_the_public_set_hold_everything_once():
    made = digits()
    shares = [made.private(k) for k in range(8)]
    assert sum(len(x) for x, _ in shares) + len(made.transfer) == len(made.dataset.x) == 1397
    assert repeated(np.concatenate([*(x for x, _ in shares), made.transfer.inputs])) == 0
    x, y = made.pooled()
    assert len(x) == len(y) == 997
    assert sorted(np.concatenate([y for _, y in shares])) == sorted(y)


def test_inputs_are_float32_and_labels_belong_to_them():
    made = digits()
    label = {row.tobytes(): int(y) for row, y in zip(made.dataset.x, made.dataset.y, strict=True)}
    for x, y in (made.private(3), made.pooled(), (made.transfer.inputs, made.truth)):
        assert x.dtype == np.float32 and y.dtype == np.int64
        assert [label[row.tobytes()] for row in x] == y.tolist()
    x, y = made.test()
    assert x.dtype == np.float32 and len(x) == len(y) == 400


def test_the_same_seed_gives_the_same_federation_and_another_seed_another():
    made = digits()
    federation.cache_clear()
    again, other = digits(), digits(seed=1)
    assert again is not made and again.transfer.fingerprint == made.transfer.fingerprint
    assert all((a == b).all() for a, b in zip(again.parts, made.parts, strict=True))
    assert other.transfer.fingerprint != made.transfer.fingerprint
    assert digits(seed=1) is other, "a process builds it once"


def test_the_public_set_does_not_depend_on_how_the_rest_is_dealt():
    marks = {digits(partition=p, clients=k).transfer.fingerprint for p, k in (("iid", 3), ("iid", 9), ("quantity", 3))}
    assert len(marks) == 1


def test_everyone_agrees_on_the_default_federation():
    assert digits().transfer.fingerprint == "6e9c8898890153e20cecc2f754f9e2d966eb90786549f9cf11ed6103a7fd4915"
    assert [len(part) for part in digits().parts] == [257, 118, 98, 47, 167, 91, 178, 41]


@pytest.fixture
def own(tmp_path):
    """Forty rows of four sites and two classes, and a pool of ten other rows."""
    x = np.arange(80, dtype=np.float32).reshape(40, 2)
    y, site = np.arange(40) % 2, np.arange(40) // 10
    np.savez(tmp_path / "own.npz", x=x, y=y, x_test=-x[1:5], y_test=y[1:5], site=site)
    np.savez(tmp_path / "pool.npz", x=x[:10] + 0.5)
    np.savez(tmp_path / "copy.npz", x=np.concatenate([x[:3], x[:7] + 0.5]))
    np.savez(tmp_path / "tested.npz", x=-x[1:5])
    np.savez(tmp_path / "wide.npz", x=np.ones((4, 3), np.float32))
    return tmp_path


def test_a_natural_partition_goes_by_a_column_of_the_rows_that_are_left(own):
    made = federation(f"npz:{own}/own.npz", "split(size=8)", "natural(column='site')", 4, 0)
    for k in range(4):
        x, _ = made.private(k)
        assert {int(value) // 20 for value in x[:, 0]} == {k}
    assert sum(len(part) for part in made.parts) == 32


def test_a_column_that_is_not_there_names_those_that_are(own):
    with pytest.raises(DataError, match="no column 'group' to deal by; its columns are site"):
        federation(f"npz:{own}/own.npz", "split(size=8)", "natural", 4, 0)
    with pytest.raises(DataError, match="data 'digits' has no column 'site' to deal by; it has no columns"):
        digits(partition="natural(column='site')")


def test_a_pool_from_elsewhere_has_no_truth_and_takes_nothing_from_the_clients(own):
    made = federation(f"npz:{own}/own.npz", f"npz:{own}/pool.npz", "iid", 4, 0)
    assert made.truth is None and len(made.transfer) == 10
    assert len(made.pooled()[0]) == 40


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ("copy.npz", "3 of 10 rows of transfer .* are private rows of data .*split"),
        ("tested.npz", "4 of 4 rows of transfer .* are test rows of data"),
        ("wide.npz", r"rows of shape \(3,\), data .* of \(2,\)"),
    ],
)
def test_a_public_set_that_is_not_public_or_not_alike_is_refused(own, pool, words):
    with pytest.raises(DataError, match=words):
        federation(f"npz:{own}/own.npz", f"npz:{own}/{pool}", "iid", 4, 0)


def test_the_data_itself_is_no_transfer_set():
    with pytest.raises(DataError, match="1397 of 1397 rows of transfer 'digits' are private rows of data 'digits'"):
        digits(transfer="digits")


def test_there_must_be_a_client():
    with pytest.raises(DataError, match="clients must be at least 1, got 0"):
        digits(clients=0)
