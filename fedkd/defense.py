"""Defenses: what is done to all ballots of a round at once, before they are aggregated row by row.

Members are functions ``(p (K, M, C), w (K, M), past (K,)) -> Vetted``. They see every row, so they can judge a client
by all that it says, which an aggregator cannot. ``past`` is how far each client was trusted after the last round, in
[0, 1], ones at first. A chain runs from the left: ``"budget | cross_check"``. Ballots of weight 0 are never read, and a
client that abstains everywhere keeps its trust.

Expertise weights are what clients say of themselves, so they are an attack surface: ``cap`` and ``budget`` bound what a
client can gain by claiming to be an expert, and the others find out who disagrees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedkd.aggregation import aggregator
from fedkd.errors import SpecError
from fedkd.registry import Registry
from fedkd.softlabels import Array

defense = Registry("defense")

LEAST = 1e-12
"""Trust does not fall below it, so that a row that only distrusted clients answered still has an answer."""

JUDGES = {"cross_check", "dawid_skene", "drop_outliers", "exp_guard"}
"""Members that keep trust from round to round; a chain has one of them at most."""


@dataclass(frozen=True, eq=False)
class Vetted:
    """Ballots ``p`` (K, M, C) and weights ``w`` (K, M) to be aggregated, and how far each client is trusted (K,)."""

    p: Array
    w: Array
    trust: Array


Defense = Callable[[Array, Array, Array], Vetted]


def vet(chain: str, p: Array, w: Array, past: Array) -> Vetted:
    """Return the ballots after the defenses of ``chain``, applied from the left; each starts from the trust before."""
    steps = defense.chain(chain)
    judges = [step.func.__name__ for step in steps if step.func.__name__ in JUDGES]
    if len(judges) > 1:
        raise SpecError(f"defense {chain!r}: one part that judges is enough, got {' and '.join(judges)}.")
    vetted = Vetted(p, w, past)
    for step in steps:
        vetted = step(vetted.p, vetted.w, vetted.trust)
    return vetted


def outlier_scores(p: Array, w: Array, teacher: Array) -> Array:
    """Return the mean L2 distance (K,) of each client's ballots to the ``teacher`` (M, C), weighted by ``w`` (K, M).

    In [0, sqrt 2]; NaN for a client that answered nothing that the teacher knows. Rows where the teacher is NaN are
    left out.
    """
    known = np.asarray(np.isfinite(teacher).all(axis=-1))
    counted = np.where((w > 0) & known, w, 0).astype(np.float64)
    counted /= np.maximum(counted.max(axis=1, keepdims=True, initial=0), np.finfo(np.float64).tiny)
    far = np.empty(w.shape, np.float64)
    for k in range(len(p)):  # one client at a time: (K, M, C) is there once already
        off = np.where((counted[k] > 0)[:, None], p[k] - np.where(known[:, None], teacher, 0.0), 0.0)
        far[k] = np.sqrt((off.astype(np.float64) ** 2).sum(axis=-1))
    total = counted.sum(axis=1)
    return np.asarray(np.divide((counted * far).sum(axis=1), total, out=np.full(len(p), np.nan), where=total > 0))


@defense
def none(p: Array, w: Array, past: Array) -> Vetted:
    """Believe everyone, as far as they say that they know."""
    return Vetted(p, w, past)


@defense
def cap(p: Array, w: Array, past: Array, *, share: float = 0.5) -> Vetted:
    """Clip weights so that no client has more than ``share`` of the weight of a row.

    So no boast makes a dictator; with votes, a client moves a row by at most ``share``. A row with 1 / share answers or
    fewer cannot be bounded so: there all count the same. ``share`` is in (0, 1].
    """
    if not 0 < share <= 1:
        raise SpecError(f"defense 'cap': 'share' must be in (0, 1], got {share}.")
    v = row_shares(w)
    ranked = -np.sort(-v, axis=0)
    # The j largest are clipped to c with c = share * (j c + rest): the first j whose c the next one does not exceed.
    taken = np.concatenate([np.zeros_like(ranked[:1]), np.cumsum(ranked, axis=0)[:-1]])
    j = np.arange(len(v))[:, None]
    # What is left is summed from the small end: 1 minus nearly 1 would have no digits left.
    rest = np.cumsum(ranked[::-1], axis=0)[::-1] if len(v) else taken
    limit = share * rest / np.maximum(1 - j * share, np.finfo(np.float64).tiny)
    fits = (j * share < 1) & (ranked <= limit * (1 + 1e-12)) & (ranked > 0)
    first = fits.argmax(axis=0)
    bound = np.where(fits.any(axis=0), np.take_along_axis(limit, first[None], axis=0)[0], 0.0)
    clipped = np.where(bound > 0, np.minimum(v, bound), (v > 0).astype(np.float64))
    return Vetted(p, _like(row_shares(clipped), w), past)


@defense
def budget(p: Array, w: Array, past: Array, *, most: float = 1.5) -> Vetted:
    """Scale clients down so that none has more than ``most`` / K of all influence, K the clients that answered.

    A client's influence is the mean of its share of the weight over the rows that two or more answered: a row of its
    own costs nothing. Who claims to know everything gets little of each row, who claims little keeps it: a boast by a
    constant factor gains nothing beyond the budget. Ratios between a client's own rows stay as they are, unlike under
    ``cap``. ``most`` is 1 or above.
    """
    if not most >= 1:
        raise SpecError(f"defense 'budget': 'most' must be 1 or above, got {most}.")
    v = row_shares(w)
    contested = (v > 0).sum(axis=0) > 1
    limit = most * contested.sum() / max(int(v[:, contested].any(axis=1).sum()), 1)
    for _ in range(200):  # a claim of 2^127 is worn down by a factor of most / K each time
        used = v[:, contested].sum(axis=1)
        if (used <= limit * (1 + 1e-3)).all():
            break
        v = row_shares(v * np.minimum(1.0, limit / np.maximum(used, limit))[:, None])
    return Vetted(p, _like(v, w), past)


@defense
def exp_guard(p: Array, w: Array, past: Array, *, eta: float = 1.0, base: str = "mean") -> Vetted:
    """Trust a client less by exp(-eta * d), d its mean L2 distance to the aggregate (ExpGuard, arXiv:2402.12265).

    The distance is taken over all rows that the client answered, rows counting alike; the aggregate is that of the
    row-wise aggregator ``base``. Trust is kept from round to round, and who is trusted most keeps all of it.
    Where labels are skewed the distance is large for honest clients too, on all that they do not know.
    """
    if not 0 <= eta < np.inf:
        raise SpecError(f"defense 'exp_guard': 'eta' must be 0 or above and finite, got {eta}.")
    scores = outlier_scores(p, (w > 0).astype(w.dtype), aggregator.build(base)(p, w))
    return _trusted(p, w, _fallen(past, scores, eta))


@defense
def cross_check(p: Array, w: Array, past: Array, *, eta: float = 5.0, steps: int = 5, claims: float = 0.33) -> Vetted:
    """Trust a client less by exp(-eta * d), d its disagreement with the others where both claim to know.

    d_k = sum_m v (1 - s) |p_k - t_-k| / sum_m v (1 - s), where v is the client's share of the weight of a row, s its
    share as a judge, and t_-k the mean of all others, weighted as judges: a row counts if this client has a say in it
    and the others have an opinion. So an honest expert is not blamed for what it disclaims to know, and one that claims
    to know everything is judged by everything. Since (1 - s)(p_k - t_-k) = p_k - t, all that takes is the mean t. Trust
    and mean are refined in turn, ``steps`` times, and what was trusted before has more say in the first of them.

    As judges, clients count by trust * w / (sum w^c)^(1/c), c = ``claims``: so who claims to know everything does not
    make the mean by which all are judged, though four in ten may do so.
    """
    if not 0 < claims <= 1:
        raise SpecError(f"defense 'cross_check': 'claims' must be in (0, 1], got {claims}.")
    if not (0 <= eta < np.inf and steps >= 1):
        raise SpecError(f"defense 'cross_check': needs a finite 'eta' >= 0 and 'steps' >= 1, got {eta} and {steps}.")
    trust, modest = past, _modest(w, claims)
    for _ in range(steps):
        scores = disagreement(p, w, judges=modest * trust[:, None])
        trust = np.where(np.isfinite(scores), _fallen(np.ones_like(past), scores, eta), past)
    return _trusted(p, w, trust)


@defense
def drop_outliers(p: Array, w: Array, past: Array, *, z: float = 3.0) -> Vetted:
    """Silence clients whose disagreement is more than ``z`` robust standard deviations above the median client's.

    The score is that of ``cross_check``, the deviation 1.4826 times the median absolute one, and 0.02 at least, so that
    clients who nearly agree are not told apart. At most half of the clients are dropped, and each round judges anew.
    """
    if not z > 0:
        raise SpecError(f"defense 'drop_outliers': 'z' must be above 0, got {z}.")
    scores = disagreement(p, w)
    judged = np.isfinite(scores)
    if not judged.any():
        return Vetted(p, w, past)
    middle = np.median(scores[judged])
    deviation = max(1.4826 * float(np.median(np.abs(scores[judged] - middle))), 0.02)
    out = judged & (np.where(judged, scores, 0) > middle + z * deviation)
    trust = np.where(judged, np.where(out, 0.0, 1.0), past)
    return _trusted(p, w, trust.astype(past.dtype))


@defense
def dawid_skene(p: Array, w: Array, past: Array, *, steps: int = 5, prior: float = 1.0) -> Vetted:
    """Translate each client's classes into those that the others see there (Dawid and Skene, 1979).

    A client's table N[z, c] counts how often it says c where the others say z, over rows where both claim to know, and
    a ballot becomes p'[z] = sum_c p[c] N[z, c] / sum_z N[z, c]: what class it was, given what the client said. Noise
    becomes flat and harmless, a consistent lie (flipped labels, say) becomes the truth. ``prior`` adds so many rows of
    agreement a class, so a client of whom little is known is taken at its word. The others' view is the weighted mean
    of their translated ballots, refined ``steps`` times. Trust is the share of the counts on the diagonal.
    """
    if not (steps >= 1 and prior > 0):
        raise SpecError(f"defense 'dawid_skene': needs 'steps' >= 1 and 'prior' > 0, got {steps} and {prior}.")
    classes = p.shape[-1]
    v = row_shares(w)
    said = np.where((w > 0)[..., None], p, 0.0).astype(np.float64)
    q, trust = said, past
    for _ in range(steps):
        mean = np.einsum("kmc,km->mc", q, v)
        tables = np.empty((len(p), classes, classes))
        for k in range(len(p)):
            others = np.maximum(mean - v[k][:, None] * q[k], 0)  # (1 - v) t_-k
            tables[k] = (v[k][:, None] * others).T @ said[k]
        seen = tables.sum(axis=(1, 2))
        agreed = np.trace(tables, axis1=1, axis2=2)
        trust = np.where(seen > 0, agreed / np.where(seen > 0, seen, 1), past)
        tables += prior * np.eye(classes)
        tables /= tables.sum(axis=1, keepdims=True)
        q = np.einsum("kmc,kzc->kmz", said, tables)
    translated = np.where((w > 0)[..., None], q, 0.0).astype(p.dtype)
    return Vetted(translated, w, trust.astype(past.dtype))


def disagreement(p: Array, w: Array, *, judges: Array | None = None) -> Array:
    """Return how far (K,) each client is from the others where both claim to know; NaN where that is nowhere.

    In [0, sqrt 2]; the formula is in the docstring of :func:`cross_check`. ``judges`` (K, M) are the weights by which
    the others' mean is taken, ``w`` unless given.
    """
    v = row_shares(w)
    s = v if judges is None else row_shares(judges)
    mean = np.zeros(p.shape[1:], np.float64)
    for k in range(len(p)):
        mean += s[k][:, None] * np.where((w[k] > 0)[:, None], p[k], 0.0)
    total = v.sum(axis=1)
    far, shared = outlier_scores(p, v, mean) * total, (v * _others(s)).sum(axis=1)
    told = shared > 1e-9 * total
    return np.where(told, far / np.where(told, shared, 1), np.nan)


def row_shares(w: Array) -> Array:
    """Divide the weights (K, M) of each row by their sum, in double precision; 0 where nobody answered."""
    v = w.astype(np.float64)
    v /= np.maximum(v.max(axis=0, keepdims=True, initial=0), np.finfo(np.float64).tiny)
    return np.asarray(v / np.maximum(v.sum(axis=0, keepdims=True), 1e-300))


def _others(v: Array) -> Array:
    """Return 1 - v where anyone answered, with all digits where v is nearly 1."""
    below = np.concatenate([np.zeros_like(v[:1]), np.cumsum(v, axis=0)[:-1]])
    above = np.concatenate([np.cumsum(v[::-1], axis=0)[::-1][1:], np.zeros_like(v[:1])])
    return np.asarray(below + above)


def _like(v: Array, w: Array) -> Array:
    """Return weights of the kind of ``w``; what counted a little must not round to silence."""
    return np.where(w > 0, np.maximum(v, np.finfo(w.dtype).tiny), 0).astype(w.dtype, copy=False)


def _modest(w: Array, power: float) -> Array:
    """Return shares (K, M) of rows by weights that have the same sum for each client, in the given power."""
    v = w.astype(np.float64)
    v = (v / np.maximum(v.max(axis=1, keepdims=True, initial=0), np.finfo(np.float64).tiny)) ** power
    return row_shares((v / np.maximum(v.sum(axis=1, keepdims=True), 1e-300)) ** (1 / power))


def _fallen(trust: Array, scores: Array, eta: float) -> Array:
    """Return trust exp(-eta * score), so scaled that the most trusted of those judged stays as it was.

    Who has no score keeps its trust. Without the scale all trust would drain away where the best client changes from
    round to round, and whoever was absent would be left with the only say.
    """
    judged = np.isfinite(scores)
    if not judged.any():
        return trust
    fallen = np.where(judged, trust, 0) * np.exp(-eta * (np.where(judged, scores, 0) - scores[judged].min()))
    fallen *= trust[judged].max() / max(fallen.max(), np.finfo(np.float64).tiny)
    return np.where(judged, np.maximum(fallen, LEAST), trust)


def _trusted(p: Array, w: Array, trust: Array) -> Vetted:
    """Return the ballots with weights times trust; a trust of 0 silences."""
    v = row_shares(w) * trust[:, None]
    return Vetted(p, _like(v, np.where(trust[:, None] > 0, w, 0).astype(w.dtype)), trust)
