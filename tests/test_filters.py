"""Budgets, calibration and words: what fits, how much noise a target needs, what an attacker can do."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
from accounting_scene import DELTA, plans
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.errors import ConfigError, PrivacyError
from fedkd.events import (
    Gaussian,
    Laplace,
    NonPrivate,
    NoOp,
    Pure,
    RandomizedResponse,
    SampledGaussian,
    Unit,
    ZeroConcentrated,
)
from fedkd.privacy import calibrate, gaussian, words
from fedkd.privacy.accountant import Filter, spent

ROOT = Path(__file__).resolve().parent.parent


# Budgets


def test_a_gaussian_budget_is_spent_to_the_last_release():
    budget = Filter(1.0, DELTA)
    z = gaussian.sigma_of(1.0, DELTA) * 10
    assert budget.fits([Gaussian(z)] * 99, Gaussian(z))
    assert not budget.fits([Gaussian(z)] * 100, Gaussian(z))
    assert budget.fits([Gaussian(z, 99)], Gaussian(z)) and not budget.fits([Gaussian(z, 99)], Gaussian(z, 2))
    assert budget.fits([Gaussian(z, 100)], NoOp())


def test_a_budget_for_sampled_noise_follows_renyi_accounting_at_one_order():
    step = SampledGaussian(0.01, 1.0)
    budget = Filter(spent([dataclasses.replace(step, count=1000)], DELTA, method="rdp"), DELTA)
    assert budget.fits([dataclasses.replace(step, count=999)], step)
    assert not budget.fits([dataclasses.replace(step, count=1000)], step)
    # A first event of another kind chooses another order: never more is allowed, and a plan says which to take.
    first = Gaussian(10.0)
    limit = spent([first, dataclasses.replace(step, count=1000)], DELTA, method="rdp")
    planned = Filter(limit, DELTA, plan=(first, dataclasses.replace(step, count=1000)))
    assert planned.fits([first, dataclasses.replace(step, count=999)], step)
    assert not planned.fits([first, dataclasses.replace(step, count=1000)], step)
    assert not Filter(limit, DELTA).fits([first, dataclasses.replace(step, count=1000)], step)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(plans, st.floats(0.5, 10.0))
def test_what_fits_a_budget_is_within_it(events, epsilon):
    done = []
    for event in events:
        if Filter(epsilon, DELTA).fits(done, event):
            done.append(event)
    method = "gaussian" if gaussian.together(done) else "rdp"
    assert spent(done, DELTA, method=method) <= epsilon * (1 + 1e-6)


def test_a_budget_without_delta_adds_epsilons_up():
    budget = Filter(1.0, 0.0)
    assert budget.fits([Pure(0.5)], Laplace(2.0))
    assert not budget.fits([Pure(0.5)], Laplace(1.9))
    assert not budget.fits([], Gaussian(1000.0))


# Calibration


@pytest.mark.parametrize(("epsilon", "noise"), [(1, 3.942), (3, 1.675), (8, 0.937)])
def test_noise_for_a_target_with_sampled_clients(epsilon, noise):
    def plan(z):
        return [SampledGaussian(0.1, z, 100)]

    found = calibrate.noise_multiplier(epsilon, DELTA, plan)
    assert found == pytest.approx(noise, rel=0.005)
    assert spent(plan(found), DELTA) <= epsilon


@pytest.mark.parametrize(("epsilon", "noise"), [(1, 16.8), (3, 6.4), (8, 3.0)])
def test_noise_for_samples_of_fixed_size_by_renyi_and_tightly(epsilon, noise):
    def plan(z):
        return [SampledGaussian(0.1, z / 2, 100, fixed=True)]

    by_renyi = calibrate.noise_multiplier(epsilon, DELTA, plan, method="rdp")
    assert by_renyi == pytest.approx(noise, abs=0.05)
    assert spent(plan(0.7 * by_renyi), DELTA) < epsilon


def test_calibration_reverses_gaussian_accounting_on_the_safe_side():
    for epsilon in (0.1, 1.0, 8.0):
        exact = math.sqrt(20) * gaussian.sigma_of(epsilon, DELTA)
        found = calibrate.noise_multiplier(epsilon, DELTA, lambda z: [Gaussian(z, 20)])
        assert exact * (1 - 1e-9) <= found <= exact * (1 + 1e-4)


def test_a_target_out_of_reach_is_refused():
    with pytest.raises(PrivacyError, match="no noise makes this plan private enough"):
        calibrate.noise_multiplier(1.0, DELTA, lambda z: [Gaussian(z), Pure(2.0)], method="rdp")
    with pytest.raises(PrivacyError, match="nothing is left to calibrate"):
        calibrate.noise_multiplier(1.0, DELTA, lambda z: [NoOp()])
    with pytest.raises(ConfigError, match="`epsilon` must be above 0"):
        calibrate.noise_multiplier(-1.0, DELTA, lambda z: [Gaussian(z)])


# Words


def test_what_an_attacker_can_do_against_gaussian_noise():
    attack = words.advantage(1.0)
    assert attack.accuracy == pytest.approx(0.69146246)  # Phi(1/2)
    assert attack.found == pytest.approx(0.0923622, abs=1e-6)  # Phi(1 - 2.3263479)
    assert words.advantage([Gaussian(2.0, 4)]) == attack
    assert words.advantage([]) == words.Attack(0.5, pytest.approx(0.01), 0.01)


def test_what_an_attacker_can_do_against_other_noise():
    # One answer of two classes with odds 3 : 1 is right in 3 of 4 cases; and found <= 3 * 1 %.
    attack = words.advantage([RandomizedResponse(2, math.log(3))])
    assert attack.accuracy == pytest.approx(0.75, abs=1e-6)
    assert 0.03 <= attack.found < 0.035
    assert words.bounded(math.log(3), 0.0).accuracy == pytest.approx(0.75)
    assert words.bounded(math.log(3), 0.0).found == pytest.approx(0.03)
    assert words.bounded(0.0, 0.1) == words.Attack(pytest.approx(0.55), pytest.approx(0.11), 0.01)
    curve = words.advantage([SampledGaussian(1 - 1e-9, 1.0)])
    assert words.advantage(1.0).found <= curve.found < 0.11
    assert curve.accuracy == pytest.approx(0.69146246, abs=1e-3)


def test_it_is_said_to_a_person():
    said = words.sentence(words.advantage(1.0), Unit.CLIENT)
    assert "whether a client's ballots were counted in at most 69.1 %" in said
    assert "at most 9.24 %" in said and "naming 1 %" in said
    for nothing in (NonPrivate(), "noise", Gaussian(0.0), ZeroConcentrated(100.0)):
        assert "no bound" in words.sentence(words.advantage([nothing]))
    assert words.advantage([ZeroConcentrated(0.001)]).accuracy < 0.55
    assert "no bound" in words.sentence(words.bounded(50.0, DELTA))


def test_small_devices_account_without_scipy():
    code = (
        "import sys\nfrom fedkd.events import Laplace, SampledGaussian\nfrom fedkd.privacy import accountant\n"
        "assert accountant.Filter(2.0, 1e-5).fits([Laplace(20.0)], SampledGaussian(0.01, 1.0, 10))\n"
        "print(sorted({'scipy', 'dp_accounting', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
