"""Distributions over classes: what is one, and the few functions on them."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.errors import SoftLabelError
from fedkd.softlabels import check_soft_labels, distinct, entropy, middle, normalize, one_hot, softmax

ROOT = Path(__file__).resolve().parent.parent

GOOD = np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])


def test_softmax_by_hand():
    # z = (ln 1, ln 2, ln 5): exp gives 1, 2, 5, which sum to 8.
    z = np.log([1.0, 2.0, 5.0])
    assert softmax(z) == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    # T = 1/2 squares: 1, 4, 25 of 30. T = 2 takes roots.
    assert softmax(z, temperature=0.5) == pytest.approx([1 / 30, 4 / 30, 25 / 30])
    roots = np.sqrt([1, 2, 5])
    assert softmax(z, temperature=2.0) == pytest.approx(roots / roots.sum())


def test_softmax_survives_logits_that_would_overflow():
    assert softmax(np.array([1e4, 0.0], np.float32)).tolist() == [1.0, 0.0]
    assert softmax(np.array([-1e30, -1e30], np.float32)).tolist() == [0.5, 0.5]
    assert softmax(np.array([1e30, 1e30], np.float32), temperature=1e-3).tolist() == [0.5, 0.5]
    assert softmax(np.array([0.0, -np.inf])).tolist() == [1.0, 0.0]
    assert softmax(np.zeros((0, 3))).shape == (0, 3)


def test_softmax_keeps_single_precision_and_its_input():
    z = np.array([[1.0, 2.0]], np.float32)
    assert softmax(z, temperature=3.0).dtype == np.float32
    assert z.tolist() == [[1.0, 2.0]]


def test_normalize_divides_by_the_sum_and_zero_rows_become_nan():
    out = normalize(np.array([[1.0, 3.0], [0.0, 0.0]], np.float32))
    assert out[0].tolist() == [0.25, 0.75]
    assert np.isnan(out[1]).all()
    assert out.dtype == np.float32


def test_entropy_by_hand():
    p = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert entropy(p) == pytest.approx([math.log(2), 0.0, math.log(3)])


def test_entropy_is_never_negative_however_a_row_is_rounded():
    assert (entropy(np.array([[1.0005, 0.0], [1.0, 0.0]], np.float32)) >= 0).all()


def test_one_hot_puts_a_one_at_each_label():
    assert one_hot(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert one_hot(np.array([[1], [0]]), 2).shape == (2, 1, 2)
    assert one_hot(np.zeros(0, np.int64), 3).shape == (0, 3)


def test_one_hot_of_many_classes_takes_memory_for_its_rows_only():
    import tracemalloc

    tracemalloc.start()
    one_hot(np.array([65_534, 0]), 65_535)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # two rows are half a megabyte, an identity matrix would be 17 gigabytes


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_distributions_pass_as_single_precision(kind):
    out = check_soft_labels(GOOD.astype(kind), 2, 3)
    assert out.dtype == np.float32
    assert out == pytest.approx(GOOD, abs=1e-3)


def test_no_rows_are_fine_where_none_were_asked():
    assert check_soft_labels(np.zeros((0, 3), np.float32), 0, 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (GOOD[:, :2], r"must have 3 classes, shape \(2, 3\), got shape \(2, 2\)"),
        (GOOD[0], r"must have 3 classes, shape \(2, 3\), got shape \(3,\)"),
        (np.zeros((2, 3, 1)), "got shape"),
        (np.concatenate([GOOD, GOOD]), "must have 2 rows, one for each queried sample, got 4"),
        (np.eye(2, 3, dtype=np.int64), "must be floating point probabilities, got int64"),
        (np.eye(2, 3, dtype=bool), "must be floating point probabilities, got bool"),
        (GOOD * [[1], [np.nan]], "NaN or infinity in 1 of 2 rows"),
        (GOOD + [[np.inf], [0]], "NaN or infinity in 1 of 2 rows"),
        (np.array([[2.0, -1.0, 0.0], [1.0, 0.0, 0.0]]), "minimum -1 and sum 1; are these logits?"),
        (GOOD * [[1], [1.01]], "sum 1.01; are these logits?"),
        (GOOD * 0, "sum 0; are these logits?"),
    ],
)
def test_whatever_is_no_distribution_says_what_it_is(p, message):
    with pytest.raises(SoftLabelError, match=f"^soft labels of client 3 .*{message}"):
        check_soft_labels(p, 2, 3, whose="soft labels of client 3")


@settings(max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9))
def test_distinct_and_middle_are_what_numpy_says_without_what_it_loads(values):
    found = np.array(values, np.float32)
    assert (distinct(found) == np.unique(found)).all()
    assert middle(found) == np.median(found)


def test_a_client_loads_no_masked_arrays():
    code = (
        "import sys, numpy as np\nfrom fedkd.client import Site, answer\nfrom fedkd.codec import encode_query\n"
        "from fedkd.config import Config\nfrom fedkd.federation import federation\nfrom fedkd.records import Query\n"
        "config = Config(learner='linear', student='none')\n"
        "shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)\n"
        "frame = encode_query(Query(1, np.arange(400), 10, shared.transfer.fingerprint), 400)\n"
        "answer(Site(0, *shared.private(0), 10, shared.transfer), frame, config)\nprint('numpy.ma' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"
