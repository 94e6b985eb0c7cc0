"""Clients that are away: what they said last still counts for a while.

Under strong skew some classes are known to few clients, and a round without them would teach the student to forget.
What a client released stays as true as it was, costs no byte and no privacy to use again, and gives way to the next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedkd.records import Query, Release
from fedkd.softlabels import Array

FADING = 0.5
"""What a weight is multiplied with for each round that has passed: where others know as much, the newer counts."""


@dataclass(frozen=True, eq=False)
class Kept:
    """The last release of a client: on rows ``indices`` (n,), sorted, in answer to the query of ``round``."""

    round: int
    indices: Array
    release: Release


def kept(before: Mapping[int, Kept], round_: int, fresh: Mapping[int, Kept], rounds: int) -> dict[int, Kept]:
    """Return what is known of each client after ``round_``: ``fresh`` or older, but not by ``rounds`` or more."""
    return {key: one for key, one in {**before, **fresh}.items() if round_ - one.round < rounds}


def of_the_absent(known: Mapping[int, Kept], query: Query, present: Collection[int]) -> dict[int, Release]:
    """Return what those who are not ``present`` said last, on the rows of ``query``, with weights that fade."""
    found = {}
    for key, one in known.items():
        if key not in present:
            old = onto(query.indices, one.indices, one.release)
            found[key] = replace(old, w=old.w * np.float32(FADING ** (query.round - one.round)))
    return found


def onto(rows: Array, past: Array, release: Release) -> Release:
    """Return an earlier release on the rows asked now; rows that it does not know get weight 0."""
    if not len(past):  # a round that asked nothing
        return Release(np.full((len(rows), release.p.shape[1]), np.nan, np.float32), np.zeros(len(rows), np.float32))
    place = np.minimum(np.searchsorted(past, rows), len(past) - 1)
    known = past[place] == rows
    return Release(release.p[place], np.where(known, release.w[place], 0).astype(np.float32), release.event)
