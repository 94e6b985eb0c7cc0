"""What goes back to the clients with the next query: functions of a round's :class:`Outcome`.

They return one teacher for all, one for each client (personal teachers), or None. Rows on which nothing is known never
go back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.errors import SpecError
from fedkd.records import Ballots, Teacher
from fedkd.registry import Registry
from fedkd.softlabels import Array, normalize

feedback = Registry("feedback")

Back = Teacher | Mapping[int, Teacher] | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """A round as the server sees it.

    ``teacher`` is what the student learned from, ``answer(rows)`` what the student says. ``ballots()`` are those of
    ``clients`` (K,) on ``rows`` (n,), stacked only for those who ask: personal teachers are made of them.
    """

    teacher: Teacher
    answer: Callable[[Array], Array]
    clients: Sequence[int] = ()
    rows: Array | None = None
    ballots: Callable[[], Ballots] | None = None


@feedback
def none(outcome: Outcome) -> None:
    """Send nothing back: clients never see the ensemble."""


@feedback
def teacher(outcome: Outcome) -> Teacher:
    """Send the teacher of the round (FedMD, arXiv:1910.03581; DS-FL, arXiv:2008.06180)."""
    return _answered(outcome.teacher)


@feedback
def student(outcome: Outcome) -> Teacher:
    """Send what the student says on the same rows: dual distillation (CFD, arXiv:2012.00632; MHAT, 2021)."""
    rows = outcome.teacher.indices[outcome.teacher.answered]
    return Teacher(outcome.answer(rows), rows)


@feedback
def clusters(outcome: Outcome, *, count: int = 2, steps: int = 10) -> dict[int, Teacher]:
    """Send each client the mean of those who answered like it: k-means over clients, row by row (COMET, JSTSP 2023).

    The centers start at the ballot farthest from the mean and go on to the one farthest from all centers so far.
    """
    if count < 1 or steps < 1:
        raise SpecError(f"feedback 'clusters': 'count' and 'steps' must be at least 1, got {count} and {steps}.")
    p, w, rows = _ballots(outcome)
    center = nearest_center(p, w, count, steps)
    return {key: _answered(Teacher(center[k], rows)) for k, key in enumerate(outcome.clients)}


@feedback
def personal(outcome: Outcome, *, penalty: float = 0.1) -> dict[int, Teacher]:
    """Send client k the mixture sum_m c_km p_m that comes nearest to its own ballots (KT-pFL, arXiv:2111.02862).

    c_k minimizes mean_x ||sum_m c_m p_m(x) - p_k(x)||^2 + ``penalty`` ||c - 1/K||^2, here in closed form instead of by
    gradient steps; negative coefficients are cut and the rest sums to one. A large penalty is the plain mean.
    """
    if not penalty > 0:
        raise SpecError(f"feedback 'personal': 'penalty' must be above 0, got {penalty}.")
    p, w, rows = _ballots(outcome)
    c = coefficients(p, w, penalty)
    heard = np.where(w[..., None] > 0, p, 0)
    total = np.einsum("jk,km->jm", c, (w > 0).astype(c.dtype))
    mixed = np.einsum("jk,kmc->jmc", c, heard) / np.where(total > 0, total, np.nan)[..., None]
    return {key: _answered(Teacher(mixed[k].astype(np.float32), rows)) for k, key in enumerate(outcome.clients)}


@feedback
def others(outcome: Outcome) -> dict[int, Teacher]:
    """Send each client the weighted mean of all others' ballots (FD, arXiv:1811.11479)."""
    p, w, rows = _ballots(outcome)
    mass = w[..., None] * np.where(w[..., None] > 0, p, 0)
    rest = mass.sum(axis=0)[None] - mass
    weight = w.sum(axis=0)[None] - w
    alone = weight <= 1e-6 * w.sum(axis=0)  # what is left of a difference of equal sums is noise
    p_rest = np.where(alone[..., None], np.nan, rest / np.where(alone, 1, weight)[..., None])
    return {
        key: _answered(Teacher(normalize(p_rest[k]).astype(np.float32), rows)) for k, key in enumerate(outcome.clients)
    }


def nearest_center(p: Array, w: Array, count: int, steps: int) -> Array:
    """Return for each ballot (K, M, C) the center of its cluster among at most ``count``, row by row.

    Who did not answer belongs to none and is given the mean of the others.
    """
    heard = (w > 0).astype(np.float64)
    q = np.where(heard[..., None] > 0, p, 0).astype(np.float64)
    weight = np.where(heard > 0, w, 0).astype(np.float64)
    weight = weight / np.maximum(weight.max(axis=0), np.finfo(float).tiny)
    total = np.maximum(weight.sum(axis=0), np.finfo(float).tiny)
    mean = np.einsum("km,kmc->mc", weight, q) / total[:, None]
    m = np.arange(q.shape[1])
    centers: list[Array] = [mean] if count == 1 else []
    distance = np.asarray(np.where(heard > 0, ((q - mean) ** 2).sum(axis=-1), -1))
    while len(centers) < count:
        far = distance.argmax(axis=0)
        centers.append(np.where((distance.max(axis=0) >= 0)[:, None], q[far, m], mean))
        to_new = ((q - centers[-1]) ** 2).sum(axis=-1)
        closest = to_new if len(centers) == 1 else np.minimum(distance, to_new)
        distance = np.asarray(np.where(heard > 0, closest, -1))
    found = np.stack(centers)  # (count, M, C)
    for _ in range(steps):
        member = ((q[:, None] - found[None]) ** 2).sum(axis=-1).argmin(axis=1)  # (K, M)
        inside = (member[None] == np.arange(count)[:, None, None]) * weight[None]
        size = inside.sum(axis=1)
        moved = np.einsum("jkm,kmc->jmc", inside, q) / np.where(size > 0, size, 1)[..., None]
        found = np.where((size > 0)[..., None], moved, found)
    member = ((q[:, None] - found[None]) ** 2).sum(axis=-1).argmin(axis=1)
    out = np.where(heard[..., None] > 0, np.take_along_axis(found, member[..., None], axis=0), mean)
    return np.where(np.max(heard, axis=0, keepdims=True)[..., None] > 0, out, np.nan).astype(np.float32)


def coefficients(p: Array, w: Array, penalty: float) -> Array:
    """Return c (K, K), rows >= 0 that sum to one: how much client k learns from client m.

    Only rows that all answered tell how alike two clients are.
    """
    clients = len(p)
    common = (w > 0).all(axis=0)
    flat = p[:, common].reshape(clients, -1).astype(np.float64)
    gram = flat @ flat.T / max(1, int(common.sum()))
    left = gram + penalty * np.eye(clients)
    c = np.linalg.solve(left, gram + penalty / clients).T  # symmetric left side: column k is client k's solution
    c = np.maximum(c, 0)
    return np.asarray(c / c.sum(axis=1, keepdims=True))


def _ballots(outcome: Outcome) -> tuple[Array, Array, Array]:
    if outcome.ballots is None or outcome.rows is None:
        raise SpecError("personal feedback needs the ballots of the round")
    ballots = outcome.ballots()
    return ballots.p, ballots.w, outcome.rows


def _answered(teacher: Teacher) -> Teacher:
    return Teacher(teacher.p[teacher.answered], teacher.indices[teacher.answered])
