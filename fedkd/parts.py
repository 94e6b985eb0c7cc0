"""All registries in one table, checks of their strings, and the presets. Imports no framework."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from fedkd import augment, defense, learner, lesson, losses, release, schedule, transfer
from fedkd.aggregation import aggregator
from fedkd.attack import attack, dishonest
from fedkd.dataset import check as check_data
from fedkd.dataset import dataset
from fedkd.errors import ConfigError, FedkdError, SpecError, did_you_mean
from fedkd.evidence import beside, evidence
from fedkd.expertise import expertise
from fedkd.feedback import Outcome, feedback
from fedkd.labeled import labels
from fedkd.memory import Memory, Pool
from fedkd.partition import partition
from fedkd.protect import protection
from fedkd.records import Ballots, Teacher, TransferSet
from fedkd.registry import Registry
from fedkd.release import mechanism
from fedkd.select import select
from fedkd.teacher import sharpener

REGISTRIES: dict[str, Registry] = {
    "data": dataset,
    "transfer": transfer.transfer,
    "partition": partition,
    "attack": attack,
    "labels": labels,
    "select": select,
    "learner": learner.learner,
    "expertise": expertise,
    "evidence": evidence,
    "release": mechanism,
    "defend": defense.defense,
    "aggregate": aggregator,
    "sharpen": sharpener,
    "lesson": lesson.lesson,
    "distill": losses.distill_loss,
    "augment": augment.augment,
    "schedule": schedule.schedule,
    "feedback": feedback,
    "protect": protection,
}
"""Configuration key to the registry that reads its value."""


P = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], np.float32)
"""Two soft labels on three classes: what a part is tried on before anything else is started."""
TRIAL_SELECTION = 10_000
"""Most rows of a transfer set that a selection is tried on."""
FITS_DATA = ("size", "minimum", "per_client", "column", "groups")
"""Options of a partition that only the data can tell right from wrong."""


def _checked(key: str, trial: Callable[[str], Any]) -> Callable[[str], None]:
    """Return a check that calls the part on tiny data: a part knows the range of its options only when it is called."""

    def check(spec: str) -> None:
        try:
            with np.errstate(all="ignore"):
                trial(spec)
        except FedkdError:
            raise
        except Exception as error:
            raise SpecError(f"{key} {spec!r} fails on two rows of three classes: {error}.") from None

    return check


def _try_attack(spec: str) -> None:
    part = attack.build(spec)
    act, classes = part(), max(3, int(part.keywords.get("target", 0)) + 1)  # how many there are, only the data can tell
    dishonest(act, 2, np.random.default_rng(0))
    if act.labels is not None:
        act.labels(np.arange(classes), classes, np.random.default_rng(0))
    if act.ballot is not None:
        act.ballot(np.eye(2, classes, dtype=np.float32), np.ones(2, np.float32), np.random.default_rng(0))


def _try_defend(spec: str) -> None:
    defense.vet(spec, np.stack([P, P[::-1]]), np.ones((2, 2), np.float32), np.ones(2))


def _try_aggregator(spec: str) -> None:
    aggregator.build(spec)(np.stack([P, P[::-1]]), np.ones((2, 2), np.float32))


def _try_sharpener(spec: str) -> None:
    sharpener.build(spec)(P)


def _try_expertise(spec: str) -> None:
    transfer_set, nobody = TransferSet(P, ""), P[:0]  # without private rows nothing is learned, and no cache is spent
    expertise.build(spec)(P, np.arange(2), transfer_set, nobody, np.random.default_rng(0))


def _try_evidence(spec: str) -> None:
    beside(P, evidence.build(spec)(TransferSet(P, ""), P[:0], np.zeros(0, np.int64), 3))


def _try_feedback(spec: str) -> None:
    rows = np.arange(2)
    ballots = Ballots(np.stack([P, P[::-1]]), np.ones((2, 2), np.float32))
    feedback.build(spec)(Outcome(Teacher(P, rows), lambda asked: P[asked], (0, 1), rows, lambda: ballots))


def _try_select(spec: str) -> None:
    """Ask as many rows as there are: how many there will be, only the transfer set can tell."""
    part = select.build(spec)
    size = inspect.signature(part).parameters.get("size")
    rows = 2 if size is None else size.default
    if rows < 1:
        raise SpecError(f"selection {spec!r}: 'size' must be at least 1, got {rows}.")
    if rows > TRIAL_SELECTION:
        return
    pool = Pool(Memory.empty(rows, 3), 1, lambda asked: np.resize(P, (len(asked), 3)), lambda: np.ones(rows, bool))
    part(pool, np.random.default_rng(0))


def _try_partition(spec: str) -> None:
    part = partition.build(spec)
    options = {key: value for key, value in part.keywords.items() if key not in FITS_DATA}
    part.func(np.arange(4000) % 10, 2, np.random.default_rng(0), **options)


CHECKS: dict[str, Callable[[str], Any]] = {
    **{key: registry.build for key, registry in REGISTRIES.items()},
    "data": check_data,
    "transfer": transfer.check,
    "partition": _checked("partition", _try_partition),
    "attack": _checked("attack", _try_attack),
    "labels": _checked("labels", lambda spec: labels.build(spec)()),
    "select": _checked("select", _try_select),
    "learner": learner.check_mix,
    "student": learner.check_student,
    "expertise": _checked("expertise", _try_expertise),
    "evidence": _checked("evidence", _try_evidence),
    "release": _checked("release", release.check),
    "defend": _checked("defend", _try_defend),
    "aggregate": _checked("aggregate", _try_aggregator),
    "sharpen": _checked("sharpen", _try_sharpener),
    "broadcast": _checked("broadcast", release.check),
    "lesson": _checked("lesson", lesson.check),
    "distill": losses.check,
    "augment": augment.check,
    "schedule": schedule.check,
    "feedback": _checked("feedback", _try_feedback),
    "protect": _checked("protect", lambda spec: protection.build(spec)()),
}
"""Configuration key to a function that raises :class:`SpecError` unless its value can be built."""


CLIENT_LEVEL = {
    "rounds": 1,
    "clients": 100,
    "learner": "linear(dimensions=20)",
    "expertise": "uniform",
    "evidence": "none",
    "feedback": "none",
    "epsilon": 8.0,
    "late": False,
    "record": False,
}
"""What presets have in common that hide every client."""
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "expert": ("fedkd's default: ballots weighted by how well a client's data covers a sample", {}),
    "one_shot": ("one round, nothing goes back: one-shot federated learning", {"rounds": 1, "feedback": "none"}),
    "tiny": (
        "the default in few bytes: three bits a class, four a weight, range coded deltas both ways",
        {
            "release": "quantize(bits=3) | weights(bits=4) | delta | range_code",
            "broadcast": "quantize(bits=4) | delta | range_code",
        },
    ),
    "private": (
        "one round in which every example is hidden: DP-SGD of a linear model on public features, epsilon 3",
        {
            "rounds": 1,
            "learner": "linear(dimensions=20, temperature=4.0)",
            "local_epochs": 20,
            "expertise": "uniform",
            "evidence": "none",
            "feedback": "none",
            "protect": "dp_sgd(rate=1.0, clip=0.1, examples=125, step=0.3)",
            "epsilon": 3.0,
        },
    ),
    "private_clients": (
        "one round in which every client is hidden: noise on the sum of 100 clients' ballots, epsilon 8",
        {**CLIENT_LEVEL, "protect": "central(clip=0.25)"},
    ),
    "private_masked": (
        "as private_clients, and the server sees only the sum: secure aggregation with noise by every client",
        {**CLIENT_LEVEL, "protect": "distributed(clip=0.25)"},
    ),
    "fedmd": (
        "FedMD, Li and Wang, arXiv:1910.03581: mean logits go back, clients match them",
        {
            "expertise": "uniform",
            "evidence": "none",
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
            "evidence": "none",
            "release": "float32",
            "aggregate": "mean",
            "sharpen": "era(temperature=0.1)",
            "feedback": "teacher",
            "broadcast": "float32",
        },
    ),
    "fd": (
        "FD, Jeong et al., arXiv:1811.11479: mean soft labels of each class, the others' as regularizer",
        {
            "keys": "classes",
            "student": "none",
            "expertise": "uniform",
            "evidence": "none",
            "release": "float32",
            "feedback": "others",
            "broadcast": "float32",
        },
    ),
    "cfd": (
        "CFD, Sattler et al., arXiv:2012.00632: one bit a label, as deltas and range coded; the student's own go back",
        {
            "expertise": "uniform",
            "evidence": "none",
            "release": "quantize(bits=1) | delta | range_code",
            "feedback": "student",
            "broadcast": "quantize(bits=1) | range_code",
        },
    ),
    "mhat": (
        "MHAT, Hu et al., 2021: the server's model is trained on the mean, its outputs go back",
        {
            "expertise": "uniform",
            "evidence": "none",
            "release": "float32",
            "feedback": "student",
            "broadcast": "float32",
        },
    ),
    "scarlet": (
        "SCARLET, arXiv:2504.19602: cached labels are not asked again, enhanced ERA with beta 1.5",
        {
            "expertise": "uniform",
            "evidence": "none",
            "release": "float32",
            "select": "cache_miss(size=200, duration=50)",
            "sharpen": "power(beta=1.5)",
            "feedback": "teacher",
            "broadcast": "float32 | delta",
        },
    ),
    "fed_gems": (
        "FedGEMS, Cheng et al., arXiv:2110.11027: a labeled transfer set, clients are asked where the server is wrong",
        {
            "expertise": "uniform",
            "evidence": "none",
            "release": "float32",
            "labels": "gems(mix=0.75)",
            "select": "wrong(size=400)",
            "feedback": "student",
            "broadcast": "float32",
        },
    ),
    "fed_aux": (
        "FedAUX, Sattler et al., arXiv:2102.02514, without sending weights: mean logits weighted by certainty",
        {
            "expertise": "density_ratio",
            "evidence": "none",
            "release": "float32 | delta",
            "aggregate": "log_mean",
            "feedback": "none",
        },
    ),
    "fed_et": (
        "Fed-ET, Cho et al., IJCAI 2022, without sending weights: varied ballots count more, their argmax is learned",
        {
            "expertise": "uniform",
            "evidence": "none",
            "release": "float32",
            "aggregate": "variance",
            "distill": "kl(hard=0.95)",
            "feedback": "student",
            "broadcast": "float32",
        },
    ),
    "selective_fd": (
        "Selective-FD, Shao et al., 2024: clients answer what their data covers, the server drops what is ambiguous",
        {
            "expertise": "kulsif",
            "evidence": "none",
            "release": "float32",
            "select": "uniform(size=200)",
            "sharpen": "gate",
            "distill": "cross_entropy",
            "feedback": "teacher",
            "broadcast": "float32",
        },
    ),
    "cronus": (
        "Cronus, Chang et al., arXiv:1912.11279: a mean without the ballots that stick out, two passes",
        {
            "expertise": "uniform",
            "evidence": "none",
            "release": "float32",
            "aggregate": "cronus(byzantine=0.4)",
            "distill": "cross_entropy",
            "feedback": "teacher",
            "broadcast": "float32",
        },
    ),
    "byzantine_fd": (
        "Byzantine FD, Roux et al., arXiv:2402.12265: ExpGuard distrusts who is far from a robust aggregate",
        {
            "expertise": "uniform",
            "evidence": "none",
            "release": "float32",
            "defend": "exp_guard(base='geometric_median')",
            "aggregate": "geometric_median",
            "feedback": "teacher",
            "broadcast": "float32",
        },
    ),
    "comet": (
        "COMET, Cho et al., 2023: every client learns from the cluster of those who answer like it",
        {
            "expertise": "uniform",
            "evidence": "none",
            "release": "float32",
            "feedback": "clusters(count=2)",
            "broadcast": "float32",
        },
    ),
    "kt_pfl": (
        "KT-pFL, Zhang et al., arXiv:2111.02862: every client learns from its own mixture of all ballots",
        {
            "expertise": "uniform",
            "evidence": "none",
            "release": "float32",
            "feedback": "personal(penalty=0.1)",
            "broadcast": "float32",
        },
    ),
    "private_kt": (
        "PrivateKT, Qi et al., 2023, without its noise: few labels on uncertain rows, a buffer of 25 rounds",
        {
            "expertise": "uniform",
            "evidence": "none",
            "release": "argmax",
            "select": "uncertain(size=50)",
            "aggregate": "vote",
            "sharpen": "argmax",
            "replay": 25,
            "lesson": "self_train(share=0.1)",
            "feedback": "none",
        },
    ),
    "fed_kt": (
        "FedKT, Li et al., arXiv:2010.01017, without its noise: one round of votes",
        {
            "rounds": 1,
            "expertise": "uniform",
            "evidence": "none",
            "release": "argmax",
            "aggregate": "vote",
            "sharpen": "argmax",
            "feedback": "none",
        },
    ),
    "pate": (
        "PATE, Papernot et al., arXiv:1610.05755, without its noise: many teachers on disjoint data vote once",
        {
            "rounds": 1,
            "clients": 50,
            "partition": "iid",
            "expertise": "uniform",
            "evidence": "none",
            "release": "argmax",
            "aggregate": "vote",
            "sharpen": "argmax",
            "feedback": "none",
        },
    ),
    "tally": (
        "TallyTrain, arXiv:2607.00173: hard-label votes, ceil(log2 C) bits a sample",
        {
            "expertise": "uniform",
            "evidence": "none",
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
