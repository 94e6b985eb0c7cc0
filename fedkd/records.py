"""The values that cross a boundary between two parts of a round. Nothing else does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedkd.events import Event, NonPrivate
from fedkd.softlabels import Array


@dataclass(frozen=True, eq=False)
class TransferSet:
    """Public unlabeled inputs (M, ...) that server and clients all hold, and the hash of their content and order."""

    inputs: Array
    fingerprint: str

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, eq=False)
class Teacher:
    """Ensemble soft labels ``p`` (n, C) on rows ``indices`` (n,) of the transfer set; NaN where nobody answered."""

    p: Array
    indices: Array

    @property
    def answered(self) -> Array:
        """Rows (n,) on which at least one client answered."""
        return np.asarray(np.isfinite(self.p).all(axis=1))


@dataclass(frozen=True, eq=False)
class Query:
    """What the server asks in a round: soft labels on ``indices`` (n,), sorted; ``feedback`` comes along if any."""

    round: int
    indices: Array
    classes: int
    fingerprint: str
    feedback: Teacher | None = None


@dataclass(frozen=True, eq=False)
class Release:
    """What leaves a client: soft labels ``p`` (n, C), how much each row counts ``w`` (n,), and what that cost.

    ``encoding`` names the grid that ``p`` already lies on, so that coding it loses nothing; ``w`` lies on that of
    ``weight_bits`` bits, unless they are 0. ``coding`` says how to write it shorter: delta, range_code, zstd.
    """

    p: Array
    w: Array
    event: Event = field(default_factory=NonPrivate)
    encoding: str = "float32"
    coding: frozenset[str] = frozenset()
    weight_bits: int = 0


@dataclass(frozen=True, eq=False)
class Ballots:
    """All releases of a round: ``p`` (K, M, C) and ``w`` (K, M) >= 0; ``w[k, m] = 0``: client k did not answer m."""

    p: Array
    w: Array


@dataclass(frozen=True)
class RoundReport:
    """What is known about one round; one line of ``metrics.jsonl``.

    All but ``seconds`` (by phase) and ``latency`` (by client, in seconds) is reproducible bit for bit. ``clients``
    maps the key of a client to its row: ``status`` (answered, late, away, silent or failed), ``bytes_up``,
    ``bytes_down``, ``local`` (test accuracy of its own model, where that is known) and ``error``.
    """

    round: int
    metrics: dict[str, float | None]
    clients: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    latency: dict[str, float]
