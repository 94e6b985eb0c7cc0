"""How data is dealt to simulated clients: ``(keys (N,), clients, rng) -> list of index arrays``.

The arrays are sorted, disjoint and never empty. ``keys`` are the labels of the private rows or, where a member has an
option ``column``, that column of the data. Shuffles sort uniform numbers instead of asking numpy for a permutation:
its stream of 64-bit draws is the part of numpy that is promised to stay, and all machines must deal alike.
"""

from __future__ import annotations

import numpy as np

from fedkd.errors import DataError
from fedkd.registry import Registry
from fedkd.softlabels import Array, distinct

partition = Registry("partition")


@partition
def iid(keys: Array, clients: int, rng: np.random.Generator) -> list[Array]:
    """Everyone gets the same number of random rows, give or take one."""
    _enough(len(keys), clients, 1, "iid")
    return [np.sort(part) for part in np.array_split(_shuffled(np.arange(len(keys)), rng), clients)]


@partition
def dirichlet(
    keys: Array, clients: int, rng: np.random.Generator, *, alpha: float = 0.3, minimum: int = 2
) -> list[Array]:
    """Label skew: each class is dealt in shares drawn from Dirichlet(alpha) (Hsu et al., arXiv:1909.06335).

    Small ``alpha`` means few classes a client; large means alike. Whoever ends below ``minimum`` rows takes random
    ones from the largest client: drawing again until all have enough (Li et al., arXiv:2102.02079) may never end.
    """
    _positive(alpha, "dirichlet")
    _enough(len(keys), clients, minimum, "dirichlet")
    parts: list[list[Array]] = [[] for _ in range(clients)]
    for label in distinct(keys):
        rows = _shuffled(np.flatnonzero(keys == label), rng)
        for part, share in zip(parts, _deal(rows, rng.dirichlet(np.full(clients, alpha))), strict=True):
            part.append(share)
    return _filled([np.concatenate(part) for part in parts], minimum, rng)


@partition
def inner_dirichlet(
    keys: Array, clients: int, rng: np.random.Generator, *, alpha: float = 0.3, size: int = 2000
) -> list[Array]:
    """Label skew at equal sizes: each client draws its own class mix from Dirichlet(alpha) and ``size`` rows by it.

    A class that runs out is replaced by the client's other ones; rows that nobody draws stay unused. flwr-datasets has
    it as InnerDirichletPartitioner.
    """
    _positive(alpha, "inner_dirichlet")
    if size < 1 or clients * size > len(keys):
        raise DataError(
            f"partition 'inner_dirichlet': {clients} clients of size {size} need {clients * size} rows, "
            f"the private data has {len(keys)}"
        )
    known = distinct(keys)
    pools = [list(_shuffled(np.flatnonzero(keys == label), rng)) for label in known]
    parts = []
    for _ in range(clients):
        mix = rng.dirichlet(np.full(len(known), alpha))
        mine: list[int] = []
        while len(mine) < size:
            left = np.array([len(pool) for pool in pools])
            chance = np.where(left > 0, np.maximum(mix, 1e-12), 0.0)
            wanted = np.diff(np.rint(np.cumsum(chance / chance.sum()) * (size - len(mine))), prepend=0).astype(np.int64)
            for pool, count in zip(pools, np.minimum(wanted, left), strict=True):
                mine += [pool.pop() for _ in range(count)]
        parts.append(np.sort(np.array(mine, np.int64)))
    return parts


@partition
def classes(keys: Array, clients: int, rng: np.random.Generator, *, per_client: int = 2) -> list[Array]:
    """Everyone holds ``per_client`` classes, split evenly among their holders ("pathological", arXiv:1602.05629).

    Holders are balanced: two classes differ by one holder at most. Where clients * per_client is less than the number
    of classes, some classes are held by nobody and their rows are left out.
    """
    known = distinct(keys)
    if not 1 <= per_client <= len(known):
        raise DataError(f"partition 'classes': per_client must be in [1, {len(known)}], got {per_client}")
    holders: list[list[int]] = [[] for _ in known]
    for client in range(clients):
        # The classes that fewest hold, ties at random: so counts never differ by more than one.
        order = np.lexsort((rng.random(len(known)), np.array([len(one) for one in holders])))
        for c in order[:per_client]:
            holders[c].append(client)
    parts: list[list[Array]] = [[] for _ in range(clients)]
    for label, holding in zip(known, holders, strict=True):
        rows = _shuffled(np.flatnonzero(keys == label), rng)
        if len(rows) < len(holding):
            raise DataError(
                f"partition 'classes': class {label} has {len(rows)} rows for {len(holding)} clients; "
                "use fewer clients or a smaller per_client"
            )
        for client, share in zip(holding, np.array_split(rows, max(1, len(holding))), strict=False):
            parts[client].append(share)
    return [np.sort(np.concatenate(part)) for part in parts]


@partition
def specialists(
    keys: Array, clients: int, rng: np.random.Generator, *, groups: str = "", focus: float = 10.0
) -> list[Array]:
    """Each client specializes in a group of classes that are easily confused (Hinton et al., arXiv:1503.02531, 5).

    ``groups`` are written like "0 2 4 6 / 5 7 9" and dealt to clients in turn; empty, the classes are dealt to as many
    groups as there are clients. Of a class, a specialist gets ``focus`` times as many rows as any other client.
    """
    if not 1 <= focus < np.inf:
        raise DataError(f"partition 'specialists': focus must be at least 1 and finite, got {focus}")
    known = [str(label) for label in distinct(keys)]
    chosen = [group.split() for group in groups.split("/")] if groups.strip() else _in_turn(known, clients)
    strange = sorted({label for group in chosen for label in group} - set(known))
    if strange or not all(chosen):
        wrong = f"there is no class {strange[0]}" if strange else "a group is empty"
        raise DataError(f"partition 'specialists': {wrong} in groups = {groups!r}; classes are {' '.join(known)}")
    _enough(len(keys), clients, 1, "specialists")
    parts: list[list[Array]] = [[] for _ in range(clients)]
    for label in distinct(keys):
        weight = np.array([focus if str(label) in chosen[k % len(chosen)] else 1.0 for k in range(clients)])
        rows = _shuffled(np.flatnonzero(keys == label), rng)
        for part, share in zip(parts, _deal(rows, weight / weight.sum()), strict=True):
            part.append(share)
    return _filled([np.concatenate(part) for part in parts], 1, rng)


@partition
def quantity(
    keys: Array, clients: int, rng: np.random.Generator, *, alpha: float = 1.0, minimum: int = 2
) -> list[Array]:
    """Sizes differ, drawn from Dirichlet(alpha), and labels are alike (Li et al., arXiv:2102.02079)."""
    _positive(alpha, "quantity")
    _enough(len(keys), clients, minimum, "quantity")
    rows = _shuffled(np.arange(len(keys)), rng)
    return _filled(_deal(rows, rng.dirichlet(np.full(clients, alpha))), minimum, rng)


@partition
def natural(keys: Array, clients: int, rng: np.random.Generator, *, column: str = "group") -> list[Array]:
    """One client for each value of a column of the data, such as a hospital or a writer.

    Where there are more values than clients, the sorted values are dealt in turn. Uses no randomness.
    """
    groups, group = np.unique(keys, return_inverse=True)
    if len(groups) < clients:
        raise DataError(
            f"partition 'natural': column {column!r} has {len(groups)} groups, too few for {clients} clients; "
            f"set clients = {len(groups)} or less"
        )
    return [np.flatnonzero(group.reshape(-1) % clients == client) for client in range(clients)]


def _in_turn(known: list[str], clients: int) -> list[list[str]]:
    many = min(clients, len(known))
    return [known[i::many] for i in range(many)]


def _shuffled(rows: Array, rng: np.random.Generator) -> Array:
    return np.asarray(rows[np.argsort(rng.random(len(rows)), kind="stable")])


def _deal(rows: Array, shares: Array) -> list[Array]:
    """Cut ``rows`` into consecutive pieces in proportion to ``shares``, which sum to 1."""
    return np.split(rows, np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64))


def _filled(parts: list[Array], minimum: int, rng: np.random.Generator) -> list[Array]:
    """Let every part below ``minimum`` take random rows from the largest; sort all."""
    for k in range(len(parts)):
        while len(parts[k]) < minimum:
            donor = int(np.argmax([len(part) for part in parts]))
            i = int(rng.random() * len(parts[donor]))
            parts[k] = np.append(parts[k], parts[donor][i])
            parts[donor] = np.delete(parts[donor], i)
    return [np.sort(part) for part in parts]


def _enough(rows: int, clients: int, minimum: int, name: str) -> None:
    if minimum < 1:
        raise DataError(f"partition {name!r}: minimum must be at least 1, got {minimum}")
    if rows < clients * minimum:
        raise DataError(
            f"partition {name!r}: {clients} clients with at least {minimum} rows each need {clients * minimum} rows, "
            f"the private data has {rows}"
        )


def _positive(alpha: float, name: str) -> None:
    if not 0 < alpha < np.inf:
        raise DataError(f"partition {name!r}: alpha must be positive and finite, got {alpha}")
