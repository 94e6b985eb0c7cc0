"""Accountants compared: what five of them say of the same plans at delta = 1e-5, and published epsilons, recounted.

Two tables. The first has plans for which the answer is known closely: epsilon by our Renyi accountant (budgets are held
with it), by our tight one (reports), by dp-accounting's loss distributions through its own event layer (empty where it
counts wrongly or refuses), and by the PRV accountants of Opacus and of prv-accountant, where they are installed. The
second has epsilons as they were stated for one label or one round, with what all of them cost together.
Run: python -m simulations.privacy.accountants (half a minute; no data needed)
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence

from fedkd.events import Event, Gaussian, Laplace, RandomizedResponse, SampledGaussian
from fedkd.privacy import gaussian
from fedkd.privacy.accountant import spent

DELTA = 1e-5
PLANS: dict[str, list[Event]] = {
    "A DP-SGD n=60000 B=256 sigma=1, 4687 steps": [SampledGaussian(256 / 60000, 1.0, 4687)],
    "B Gaussian sigma=20, 100 times": [Gaussian(20.0, 100)],
    "C Poisson sample q=0.1 sigma=1, 100 times": [SampledGaussian(0.1, 1.0, 100)],
    "C' the same of fixed size (sigma=0.5 to replace)": [SampledGaussian(0.1, 0.5, 100, fixed=True)],
    "D Laplace b=10, 100 times": [Laplace(10.0, 100)],
    "E randomized response C=10 epsilon=1, 100 times": [RandomizedResponse(10, 1.0, 100)],
    "F sample q=0.01 sigma=1 x1000, Gaussian, Laplace x10": [
        SampledGaussian(0.01, 1.0, 1000),
        Gaussian(10.0),
        Laplace(20.0, 10),
    ],
}
LABEL = gaussian.sigma_of(1.0, DELTA)
EPOCH = SampledGaussian(32 / 4000, 1.0, 125)
STATED: dict[str, tuple[str, list[Event]]] = {
    **{f"Gaussian label (1, 1e-5), {n} of them": ("1 a label", [Gaussian(LABEL, n)]) for n in (1, 10, 100, 1000)},
    "the same, 1000 labels in 10 rounds": ("1 a label", [Gaussian(LABEL, 10_000)]),
    "the same, 5000 labels in 50 rounds": ("1 a label", [Gaussian(LABEL, 250_000)]),
    **{f"Laplace label epsilon=1, {n} of them": ("1 a label", [Laplace(1.0, n)]) for n in (10, 100, 1000)},
    "PrivateKT's demo, 250 of 500 rounds, 2 labels each": ("5 a round", [RandomizedResponse(10, 2.5, 500)]),
    **{
        f"Flower's Opacus example, {n} rounds (Renyi)": ("1.12 a round", [EPOCH] * n) for n in (1, 3, 10, 30, 100)
    },
}  # fmt: skip


def dp_accounting(events: Sequence[Event]) -> float:
    """Return what dp-accounting's PLD accountant says of plans that its event layer counts rightly, else NaN."""
    library = importlib.import_module("dp_accounting")
    theirs = importlib.import_module("dp_accounting.pld").PLDAccountant()
    for event in events:
        match event:
            case Gaussian(noise_multiplier=z, count=n):
                theirs.compose(library.GaussianDpEvent(z), n)
            case SampledGaussian(rate=q, noise_multiplier=z, count=n, fixed=False):
                theirs.compose(library.PoissonSampledDpEvent(q, library.GaussianDpEvent(z)), n)
            case Laplace(noise_multiplier=b, count=n):
                theirs.compose(library.LaplaceDpEvent(b), n)
            case _:
                return math.nan  # no event for a fixed size; and the count of randomized response is forgotten
    return float(theirs.get_epsilon(DELTA))


def opacus(events: Sequence[Event]) -> float:
    """Return what Opacus' PRV accountant says (an upper bound, 0.01 wide), NaN for other noise than Gaussian."""
    rows = [sampled(event) for event in events]
    if None in rows:
        return math.nan
    theirs = importlib.import_module("opacus.accountants").PRVAccountant()
    theirs.history = rows
    return float(theirs.get_epsilon(delta=DELTA, eps_error=0.01))


def prv_accountant(events: Sequence[Event]) -> float:
    """Return what prv-accountant says (its estimate, within 0.01), NaN for randomized response."""
    library = importlib.import_module("prv_accountant")
    parts, counts = [], []
    for event in events:
        match event:
            case Laplace(noise_multiplier=b, count=n):
                parts.append(library.LaplaceMechanism(mu=1 / b))
                counts.append(n)
            case _:
                row = sampled(event)
                if row is None:
                    return math.nan
                z, q, n = row
                parts.append(library.PoissonSubsampledGaussianMechanism(sampling_probability=q, noise_multiplier=z))
                counts.append(n)
    theirs = library.PRVAccountant(prvs=parts, max_self_compositions=counts, eps_error=0.01, delta_error=1e-8)
    return float(theirs.compute_epsilon(delta=DELTA, num_self_compositions=counts)[1])


def sampled(event: Event) -> tuple[float, float, int] | None:
    """Return (noise, rate, steps) of Gaussian noise on a Poisson sample or on all, else None."""
    match event:
        case Gaussian(noise_multiplier=z, count=n):
            return z, 1.0, n
        case SampledGaussian(rate=q, noise_multiplier=z, count=n, fixed=False):
            return z, q, n
    return None


def columns() -> dict[str, Callable[[Sequence[Event]], float]]:
    """Return the accountants that are installed, by name."""
    ours: dict[str, Callable[[Sequence[Event]], float]] = {
        "ours rdp": lambda events: spent(events, DELTA, method="rdp"),
        "ours tight": lambda events: spent(events, DELTA),
        "dp-accounting": dp_accounting,
    }
    others = {"opacus prv": ("opacus", opacus), "prv-accountant": ("prv_accountant", prv_accountant)}
    return ours | {name: ask for name, (package, ask) in others.items() if importlib.util.find_spec(package)}


def main() -> None:
    """Print both tables."""
    accountants = columns()
    print(f"{'plan':52s}" + "".join(f"{name:>16s}" for name in accountants))
    for name, events in PLANS.items():
        found = [ask(events) for ask in accountants.values()]
        print(f"{name:52s}" + "".join(f"{'' if math.isnan(x) else f'{x:.4f}':>16s}" for x in found), flush=True)
    print(f"\n{'stated':52s}{'epsilon':>16s}{'together':>16s}")
    for name, (stated, events) in STATED.items():
        method = "rdp" if "Renyi" in name else "tight"
        print(f"{name:52s}{stated:>16s}{spent(events, DELTA, method=method):>16.2f}", flush=True)


if __name__ == "__main__":
    main()
