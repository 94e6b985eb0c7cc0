"""What a client's own labeled examples say of a row, class by class, beside what its model says.

A ballot p (C,) of weight w goes into the mean as votes w p_c. Expertise looks at how densely the client's examples lie
around a row, not at their labels; yet those next to a row know its class about as well as the model does, and their
errors are others. Evidence multiplies each vote by exp(e_c); :func:`by_class` takes the votes apart into a ballot and a
weight again, so that nothing changes on the wire.

Members are functions ``(transfer, private (N, ...), y (N,), classes, weighed) -> e (M, C)`` on all rows of the transfer
set, computed once for all rounds. ``weighed`` says that the weights are ``density`` already: what all examples say
together is then counted, and only what a class has beyond it is evidence. None but ``none`` is a private mechanism.
"""

from __future__ import annotations

import numpy as np

from fedkd.errors import SpecError
from fedkd.expertise.density import RANGE, log_ratio
from fedkd.expertise.plain import above_zero
from fedkd.expertise.space import around, nearest, space
from fedkd.records import TransferSet
from fedkd.registry import Registry
from fedkd.softlabels import Array

evidence = Registry("evidence")

ABSENT = -60.0
"""Log ratio of a class of which the client has no example: e^-60, to be far away is not to be impossible."""


@evidence
def none(transfer: TransferSet, private: Array, y: Array, classes: int, weighed: bool) -> Array:
    """Leave ballots to the model alone."""
    return np.zeros((len(transfer), classes), np.float32)


@evidence
def neighbors(
    transfer: TransferSet,
    private: Array,
    y: Array,
    classes: int,
    weighed: bool,
    *,
    share: float = 0.5,
    sharpness: float = 1.5,
    neighbors: int = 5,
    dimensions: int = 80,
    concentration: float = 100.0,
) -> Array:
    """Multiply the vote for a class by how densely the client's examples of it lie around a row, to a power.

    l_c = log(n_kc p_kc(x) / (n p(x))) is the estimate of ``density`` from the n_kc examples of class c, l that from all
    of them. With density weights exp(s l), s the ``sharpness``, votes become p_c exp((1 - a) s l + a s l_c): the
    ``share`` a of a vote is judged class by class, so e_c = a s (l_c - l). Where the client has one class only, that is
    0. Beside other weights e_c = a s l_c. With a = 1 and flat ballots this is the nearest-neighbor classifier of the
    pooled data, a = 0 says nothing. Other options are those of ``density``.
    """
    options = {"sharpness": sharpness, "neighbors": neighbors, "dimensions": dimensions}
    above_zero("neighbors", "evidence", **options, concentration=concentration)
    if not 0 <= share <= 1:
        raise SpecError(f"evidence 'neighbors': 'share' must be in [0, 1], got {share}.")
    together, apart = log_ratios(
        transfer, private, y, classes, neighbors=neighbors, dimensions=dimensions, concentration=concentration
    )
    beyond = apart - together[:, None] if weighed else apart
    return np.asarray(share * sharpness * beyond, np.float32)


def log_ratios(
    transfer: TransferSet,
    private: Array,
    y: Array,
    classes: int,
    *,
    neighbors: int,
    dimensions: int,
    concentration: float,
) -> tuple[Array, Array]:
    """Return the log density ratio of ``private`` to the transfer set at its rows: of all (M,), of each class (M, C).

    A class without examples has ``ABSENT``, or less where the client is farther than that from what it does have:
    nobody believes more in what was never seen.
    """
    apart = np.full((len(transfer), classes), ABSENT)
    if not len(private):
        return np.full(len(transfer), ABSENT), apart
    public, project = space(transfer, dimensions)
    theirs, rows = around(public, (transfer.fingerprint, dimensions, "space"), neighbors), np.arange(len(public))
    mine, held, found = project(private), np.unique(y), []
    for c in held:
        own = mine[y == c]
        found.append(nearest(public, own, min(neighbors, len(own))))
        apart[:, c] = log_ratio(found[-1], rows, theirs, len(own), concentration)
    # The nearest of all examples are among the nearest of each class: there is nothing to search again.
    r = np.sort(np.concatenate(found, axis=1), axis=1)[:, : min(neighbors, len(private))]
    unseen = np.setdiff1d(np.arange(classes), held)
    apart[:, unseen] = np.minimum(ABSENT, apart[:, held].min(axis=1))[:, None]
    return log_ratio(r, rows, theirs, len(private), concentration), apart


def by_class(p: Array, w: Array, e: Array) -> tuple[Array, Array]:
    """Return the ballots (n, C) and weights (n,) whose votes are ``w`` p_c exp(e_c).

    p'_c is in proportion to p_c exp(e_c), and w' = w sum_c p_c exp(e_c), kept within e^-80 .. e^80. A class that ``p``
    (n, C) rules out stays ruled out, and who abstains (w = 0) still does.
    """
    vote = np.log(p, out=np.full(p.shape, -np.inf), where=p > 0) + e
    top = vote.max(axis=1, keepdims=True)  # taken out, so that nothing overflows
    share = np.exp(vote - top)
    total = share.sum(axis=1)
    log_w = np.log(w, out=np.zeros(w.shape), where=w > 0) + top[:, 0] + np.log(total)
    weight = np.where(w > 0, np.exp(np.clip(log_w, -RANGE, RANGE)), 0)
    return np.asarray(share / total[:, None], np.float32), np.asarray(weight, np.float32)
