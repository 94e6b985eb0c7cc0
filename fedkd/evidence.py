"""What a client's own labeled examples say of a row, class by class, beside what its model says.

Expertise looks at how densely the client's examples lie around a row, not at their labels; yet those next to a row know
its class about as well as the model does, and their errors are others. :func:`beside` makes a ballot of both. Weights
stay what expertise made them: they do not change with the model, so a release as ``delta`` still sends them once.

Members are functions ``(transfer, private (N, ...), y (N,), classes) -> e (M, C)`` on all rows of the transfer set,
logarithms up to a constant of the row, computed once for all rounds. None but ``none`` is a private mechanism.
"""

from __future__ import annotations

import numpy as np

from fedkd.expertise.density import log_ratio
from fedkd.expertise.plain import above_zero
from fedkd.expertise.space import around, nearest, space
from fedkd.records import TransferSet
from fedkd.registry import Registry
from fedkd.softlabels import Array, distinct

evidence = Registry("evidence")

ABSENT = -60.0
"""Log ratio of a class of which the client has no example: e^-60, to be far away is not to be impossible."""


@evidence
def none(transfer: TransferSet, private: Array, y: Array, classes: int) -> Array:
    """Leave ballots to the model alone."""
    return np.zeros((len(transfer), classes), np.float32)


@evidence
def neighbors(
    transfer: TransferSet,
    private: Array,
    y: Array,
    classes: int,
    *,
    sharpness: float = 0.75,
    neighbors: int = 5,
    dimensions: int = 80,
    concentration: float = 100.0,
) -> Array:
    """Multiply the ballot by how densely the client's examples of each class lie around a row, to a power.

    e_c = s l_c with s the ``sharpness`` and l_c = log(n_kc p_kc(x) / (n p(x))), estimated as ``density`` does, from the
    n_kc examples of class c. Beside a flat ballot and with s = 1 this is the posterior of the client's own data by its
    nearest neighbors; as a second opinion of equal standing s is below 1. Other options are those of ``density``.
    """
    options = {"sharpness": sharpness, "neighbors": neighbors, "dimensions": dimensions}
    above_zero("neighbors", "evidence", **options, concentration=concentration)
    ratios = log_ratios(
        transfer, private, y, classes, neighbors=neighbors, dimensions=dimensions, concentration=concentration
    )
    return np.asarray(sharpness * ratios, np.float32)


def log_ratios(
    transfer: TransferSet,
    private: Array,
    y: Array,
    classes: int,
    *,
    neighbors: int,
    dimensions: int,
    concentration: float,
) -> Array:
    """Return the log density ratio of each class of ``private`` to the transfer set, at its rows (M, C).

    A class without examples has ``ABSENT``, or less where the client is farther than that from what it does have:
    nobody believes more in what was never seen.
    """
    ratios = np.full((len(transfer), classes), ABSENT)
    if not len(private):
        return ratios
    public, project = space(transfer, dimensions)
    theirs, rows = around(public, (transfer.fingerprint, dimensions, "space"), neighbors), np.arange(len(public))
    mine, held = project(private), distinct(y)
    for c in held:
        own = mine[y == c]
        ratios[:, c] = log_ratio(nearest(public, own, min(neighbors, len(own))), rows, theirs, len(own), concentration)
    unseen = np.flatnonzero(~np.isin(np.arange(classes), held))
    ratios[:, unseen] = np.minimum(ABSENT, ratios[:, held].min(axis=1))[:, None]
    return ratios


def beside(p: Array, e: Array) -> Array:
    """Return the ballots (n, C) in proportion to p_c exp(e_c). A class that ``p`` (n, C) rules out stays ruled out."""
    vote = np.log(p, out=np.full(p.shape, -np.inf), where=p > 0) + e
    vote = np.exp(vote - vote.max(axis=1, keepdims=True))  # the top is taken out, so that nothing overflows
    return np.asarray(vote / vote.sum(axis=1, keepdims=True), np.float32)
