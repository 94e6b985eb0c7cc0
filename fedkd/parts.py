"""All registries in one table, checks of their strings, and the presets. Imports no framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedkd import learner, losses, transfer
from fedkd.aggregation import aggregator
from fedkd.dataset import dataset
from fedkd.errors import ConfigError, SpecError, did_you_mean
from fedkd.expertise import expertise
from fedkd.feedback import feedback
from fedkd.labeled import labels
from fedkd.partition import partition
from fedkd.registry import Registry
from fedkd.release import mechanism
from fedkd.select import select
from fedkd.teacher import sharpener

protection = Registry("protection")


@protection
def none() -> None:
    """Give no privacy guarantee: predictions leave as they are, and every report says so."""


REGISTRIES: dict[str, Registry] = {
    "data": dataset,
    "transfer": transfer.transfer,
    "partition": partition,
    "labels": labels,
    "select": select,
    "learner": learner.learner,
    "expertise": expertise,
    "release": mechanism,
    "aggregate": aggregator,
    "sharpen": sharpener,
    "distill": losses.distill_loss,
    "feedback": feedback,
    "protect": protection,
}
"""Configuration key to the registry that reads its value."""


def _chain(spec: str) -> None:
    encoders = mechanism.chain(spec)
    if not encoders:
        raise SpecError("a release needs at least one mechanism, as in 'float16'.")


CHECKS: dict[str, Callable[[str], Any]] = {
    **{key: registry.build for key, registry in REGISTRIES.items()},
    "transfer": transfer.check,
    "learner": learner.check_mix,
    "student": learner.check_student,
    "release": _chain,
    "broadcast": _chain,
    "distill": losses.check,
}
"""Configuration key to a function that raises :class:`SpecError` unless its value can be built."""


PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "expert": ("fedkd's default: ballots weighted by how well a client's data covers a sample", {}),
    "one_shot": ("one round, nothing goes back: one-shot federated learning", {"rounds": 1, "feedback": "none"}),
    "fedmd": (
        "FedMD, Li and Wang, arXiv:1910.03581: mean logits go back, clients match them",
        {
            "expertise": "uniform",
            "release": "float32",
            "aggregate": "log_mean",
            "distill": "mae",
            "feedback": "teacher",
            "broadcast": "float32",
        },
    ),
    "ds_fl": (
        "DS-FL, Itahara et al., arXiv:2008.06180: entropy-reduction averaging, T = 0.1",
        {
            "expertise": "uniform",
            "release": "float32",
            "aggregate": "mean",
            "sharpen": "era(temperature=0.1)",
            "feedback": "teacher",
            "broadcast": "float32",
        },
    ),
    "tally": (
        "TallyTrain, arXiv:2607.00173: hard-label votes, ceil(log2 C) bits a sample",
        {
            "expertise": "uniform",
            "release": "argmax",
            "aggregate": "vote",
            "sharpen": "argmax",
            "feedback": "teacher",
            "broadcast": "argmax",
        },
    ),
}
"""Name to (one sentence with its source, the keys it sets)."""


def preset(name: str) -> dict[str, Any]:
    """Return the keys that preset ``name`` sets."""
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS)
        raise ConfigError(f"unknown preset {name!r}.{hint} Known: {', '.join(sorted(PRESETS))}.")
    return dict(PRESETS[name][1])
