"""Dishonest clients, for simulations only: what they do to their labels before training, or to what they release.

A member returns an :class:`Attack`. Attackers follow the protocol otherwise: their ballots are distributions and their
weights lie on the grid. They know their own data and predictions and no one else's, unlike those of the papers, which
see the honest clients' ballots of the round. Each member has two options: ``share``, the share of clients that take
part, and ``boast``, by which they multiply their weight on every row, up to the largest that the grid allows
(``inf`` claims that one everywhere): expertise weights are what a client says of itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedkd.errors import SpecError
from fedkd.registry import Registry
from fedkd.softlabels import TINY, Array, one_hot
from fedkd.symbols import MOST

attack = Registry("attack")

Labels = Callable[[Array, int, np.random.Generator], Array]
Ballot = Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]

LARGEST = float(2.0 ** (MOST // 8))
"""The largest weight of the grid that weights are sent on."""


@dataclass(frozen=True)
class Attack:
    """What the dishonest ``share`` of the clients does.

    ``labels(y (N,), classes, rng)`` returns the labels (N,) that they train on, ``ballot(p (n, C), w (n,), rng)`` what
    they release instead of ``p`` and ``w``. None: as an honest client does.
    """

    share: float
    labels: Labels | None = None
    ballot: Ballot | None = None


def dishonest(attack: Attack, clients: int, rng: np.random.Generator) -> set[int]:
    """Return which of ``clients`` clients attack: the whole part of their share, drawn by ``rng``.

    Of one permutation the first are taken, so a larger share adds attackers to those of a smaller one.
    """
    return set(map(int, rng.permutation(clients)[: int(attack.share * clients + 1e-9)]))


@attack
def none() -> Attack:
    """Let all clients be honest."""
    return Attack(0.0)


@attack
def label_flip(*, share: float = 0.2, derange: bool = False, boast: float = 1.0) -> Attack:
    """Train on labels C - 1 - y, as in many papers; with ``derange`` on a random derangement of classes.

    Where C is odd the middle class stays as it is; a derangement leaves no class in its place, and each attacker draws
    its own.
    """

    def flipped(y: Array, classes: int, rng: np.random.Generator) -> Array:
        to = derangement(classes, rng) if derange else np.arange(classes)[::-1]
        return np.asarray(to[y], y.dtype)

    return _attack("label_flip", share, boast, labels=flipped)


@attack
def random(*, share: float = 0.2, concentration: float = 1.0, boast: float = 1.0) -> Attack:
    """Release noise: each row is drawn from a symmetric Dirichlet distribution; 1 is uniform, less is more certain."""
    if not concentration > 0:
        raise SpecError(f"attack 'random': 'concentration' must be above 0, got {concentration}.")

    def noise(p: Array, rng: np.random.Generator) -> Array:
        # Of a tiny concentration all gammas may be 0, so a floor keeps the row a distribution.
        drawn = rng.standard_gamma(concentration, p.shape) + 1e-300
        return np.asarray(drawn / drawn.sum(axis=1, keepdims=True), p.dtype)

    return _attack("random", share, boast, lie=noise)


@attack
def lma(*, share: float = 0.2, boast: float = 1.0) -> Attack:
    """Put all mass on the class that the client finds least likely (loss maximization attack, arXiv:2402.12265).

    The paper's attackers take the least likely class of the honest mean; these have their own prediction only.
    """
    return _attack("lma", share, boast, lie=lambda p, rng: one_hot(p.argmin(axis=1), p.shape[1], p.dtype))


@attack
def cpa(*, share: float = 0.2, boast: float = 1.0) -> Attack:
    """Put all mass on the class least correlated with the predicted one (class prior attack, arXiv:2402.12265).

    Correlations are those between columns of the client's own predictions in this query; the paper takes covariances
    from a model trained beforehand. So a class is always mistaken for the same other one, all attackers alike.
    """

    def least_correlated(p: Array, rng: np.random.Generator) -> Array:
        off = p - p.sum(axis=0) / max(len(p), 1)
        length = np.sqrt((off**2).sum(axis=0))
        correlation = off.T @ off / np.maximum(np.outer(length, length), TINY)
        np.fill_diagonal(correlation, np.inf)  # a class that never varies correlates with nothing, itself included
        return one_hot(correlation.argmin(axis=0)[p.argmax(axis=1)], p.shape[1], p.dtype)

    return _attack("cpa", share, boast, lie=least_correlated)


@attack
def hips(*, share: float = 0.2, boast: float = 1.0) -> Attack:
    """Hide inside the simplex of ballots that an honest client makes (HIPS, arXiv:2402.12265), with what a client sees.

    The paper's colluders pick, of the honest ballots on a row, the one that does most harm (:func:`worst_of`); here a
    client knows its own ballots only. On a row it says what it says on average where it believes in the row's second
    class: a mean of honest ballots, no bolder than these, and a mistake that an honest client might make.
    """

    def runner_up(p: Array, rng: np.random.Generator) -> Array:
        if not len(p):
            return p
        order = np.argsort(-p, axis=1, kind="stable")
        first, second = order[:, 0], order[:, 1]
        counts = np.bincount(first, minlength=p.shape[1])
        typical = np.zeros((p.shape[1], p.shape[1]))
        np.add.at(typical, first, p)
        typical /= np.maximum(counts, 1)[:, None]
        swapped = p.copy()  # no row is believed to be of the second class: p with the two exchanged is all there is
        np.put_along_axis(swapped, order[:, :2], np.take_along_axis(p, order[:, 1::-1], axis=1), axis=1)
        return np.where((counts > 0)[second][:, None], typical[second], swapped).astype(p.dtype, copy=False)

    return _attack("hips", share, boast, lie=runner_up)


@attack
def rank_shuffle(*, share: float = 0.2, shuffle: bool = False, boast: float = 1.0) -> Attack:
    """Keep the values of a row and reverse their ranks: the surest class gets the least (FDLA, arXiv:2401.03685).

    With ``shuffle`` the surest class gets the least value still, and the others change places at random.
    """

    def reversed_ranks(p: Array, rng: np.random.Generator) -> Array:
        order = np.argsort(p, axis=1, kind="stable")
        values = np.take_along_axis(p, order[:, ::-1], axis=1)  # the largest value for the last class, and so on
        if shuffle:
            values[:, :-1] = rng.permuted(values[:, :-1], axis=1)
        lie = np.empty_like(p)
        np.put_along_axis(lie, order, values, axis=1)
        return lie

    return _attack("rank_shuffle", share, boast, lie=reversed_ranks)


@attack
def collude(*, share: float = 0.2, target: int = 0, boast: float = 1.0) -> Attack:
    """Let all attackers say one and the same class on every row, whatever it shows."""
    if target < 0:
        raise SpecError(f"attack 'collude': 'target' must be a class, 0 or above, got {target}.")

    def same(p: Array, rng: np.random.Generator) -> Array:
        if target >= p.shape[1]:
            raise SpecError(f"attack 'collude': 'target' must be in 0..{p.shape[1] - 1}, got {target}.")
        return one_hot(np.full(len(p), target), p.shape[1], p.dtype)

    return _attack("collude", share, boast, lie=same)


def worst_of(p: Array, truth: Array) -> Array:
    """Return, of the ballots ``p`` (A, n, C) on each row, the one of the largest cross-entropy to ``truth`` (n, C).

    HIPS of arXiv:2402.12265 for colluders that share their predictions: with the honest ballots and their mean it is
    the paper's, with the colluders' own it is what they can do without spying.
    """
    loss = -(truth * np.log(np.maximum(p, TINY))).sum(axis=-1)
    return np.asarray(np.take_along_axis(p, loss.argmax(axis=0)[None, :, None], axis=0)[0])


def derangement(classes: int, rng: np.random.Generator) -> Array:
    """Return a random permutation (C,) that leaves no class in its place: one cycle through all, C >= 2."""
    cycle = rng.permutation(classes)
    to = np.empty(classes, np.int64)
    to[cycle] = np.roll(cycle, -1)
    return to


def _attack(
    name: str,
    share: float,
    boast: float,
    *,
    labels: Labels | None = None,
    lie: Callable[[Array, np.random.Generator], Array] | None = None,
) -> Attack:
    if not 0 <= share <= 1:
        raise SpecError(f"attack {name!r}: 'share' must be in [0, 1], got {share}.")
    if not boast > 0:
        raise SpecError(f"attack {name!r}: 'boast' must be above 0, got {boast}.")
    if lie is None and boast == 1:
        return Attack(share, labels, None)
    return Attack(share, labels, functools.partial(_release, lie=lie, boast=boast))


def _release(
    p: Array,
    w: Array,
    rng: np.random.Generator,
    *,
    lie: Callable[[Array, np.random.Generator], Array] | None,
    boast: float,
) -> tuple[Array, Array]:
    """Return the lie about ``p`` and the boast about ``w``; a row on which the client abstains stays unanswered."""
    q = p if lie is None else lie(p, rng)
    if boast == 1:
        return q, w
    claimed = np.where(w > 0, LARGEST, 0.0) if np.isinf(boast) else np.minimum(w.astype(np.float64) * boast, LARGEST)
    return q, np.asarray(claimed, w.dtype)
