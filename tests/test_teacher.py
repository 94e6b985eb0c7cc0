"""Each sharpener by hand."""

import math

import numpy as np
import pytest

from fedkd.errors import SpecError
from fedkd.softlabels import entropy
from fedkd.teacher import sharpener

P = np.array([[0.5, 0.3, 0.2]])


def sharpen(spec, p=P):
    return sharpener.build(spec)(p)


def test_none_changes_nothing():
    assert (sharpen("none") == P).all()


def test_era_by_hand():
    # exp(5), exp(3), exp(2) in proportion: 1, e^-2, e^-3.
    e = np.array([1, math.exp(-2), math.exp(-3)])
    assert sharpen("era(temperature=0.1)")[0] == pytest.approx(e / e.sum())
    assert sharpen("era")[0] == pytest.approx(e / e.sum())


def test_era_of_a_flat_row_stays_flat_and_no_temperature_is_the_identity():
    assert sharpen("era", np.full((1, 4), 0.25))[0] == pytest.approx([0.25] * 4)
    assert np.abs(sharpen("era(temperature=1.0)") - P).max() > 0.05


def test_power_by_hand():
    # .25, .09, .04 of .38
    assert sharpen("power")[0] == pytest.approx([25 / 38, 9 / 38, 4 / 38])
    assert sharpen("power(beta=1)")[0] == pytest.approx(P[0])
    roots = np.sqrt(P[0])
    assert sharpen("power(beta=0.5)")[0] == pytest.approx(roots / roots.sum())


def test_power_keeps_a_zero_at_zero():
    assert sharpen("power(beta=0.01)", np.array([[1.0, 0.0]]))[0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("spec", ["power(beta=1e300)", "power(beta=1e999)", "era(temperature=1e-300)"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_limit_of_sharpening_is_the_argmax(spec, kind):
    assert sharpen(spec, P.astype(kind))[0].tolist() == [1.0, 0.0, 0.0]
    assert sharpen(spec, np.array([[0.5, 0.5, 0.0]], kind))[0].tolist() == [0.5, 0.5, 0.0]


def test_power_of_many_small_classes_does_not_underflow():
    p = np.full((1, 1000), 1e-3, np.float32)
    assert sharpen("power(beta=50.0)", p)[0] == pytest.approx(p[0])


def test_argmax_by_hand():
    assert sharpen("argmax")[0].tolist() == [1, 0, 0]
    assert sharpen("argmax", np.array([[0.2, 0.4, 0.4]]))[0].tolist() == [0, 1, 0]  # ties go to the lower class


@pytest.mark.parametrize("spec", ["era", "power", "argmax"])
def test_sharpening_lowers_the_entropy(spec):
    p = np.random.default_rng(0).dirichlet(np.ones(10) * 0.5, 200)
    assert entropy(sharpen(spec, p)).mean() < entropy(p).mean()


@pytest.mark.parametrize(("spec", "option"), [("era(temperature=0)", "temperature"), ("power(beta=-1.0)", "beta")])
def test_what_would_turn_the_teacher_around_is_refused(spec, option):
    with pytest.raises(SpecError, match=f"'{option}' must be above 0"):
        sharpen(spec)


def test_the_gate_by_hand_drops_rows_without_a_majority_and_changes_nothing_else():
    p = np.array([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25], [0.5, 0.5, 0.0]])
    gated = sharpener.build("gate")(p)  # distances 0.8, 1.2 and 1.0
    assert gated[0].tolist() == [0.6, 0.3, 0.1] and gated[2].tolist() == [0.5, 0.5, 0.0]
    assert np.isnan(gated[1]).all()
    assert np.isnan(sharpener.build("gate(threshold=0.7)")(p)).all()
    with pytest.raises(SpecError, match="threshold"):
        sharpener.build("gate(threshold=0.0)")(p)
