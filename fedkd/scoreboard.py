"""The end of a run: who won, what it cost, what FedAvg would have sent, and what to look at if it went wrong."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

import fedkd
from fedkd import metrics
from fedkd.client import HONEST, role, spec_of, training_of
from fedkd.config import Config
from fedkd.federation import Federation
from fedkd.learner import Learner, make_learner, see_public, set_threads
from fedkd.privacy.report import statement
from fedkd.protect import doubtful_delta
from fedkd.random import derive, generator
from fedkd.softlabels import Array
from fedkd.state import State

LAG = 0.02
"""How far a student may stay behind its teacher before that is worth a warning; both are measured on few rows."""
UNSURE = 0.3
"""How far a student's confidence may stay below its accuracy before that is worth a word."""
OWN = ("expert", "one_shot", "tiny")
"""Presets that are nobody else's method, so that another part may be advised."""
ALONE = "one client has nobody to average with"
EMPTY: Mapping[str, Any] = MappingProxyType({})


def build_student(config: Config, shared: Federation, *, purpose: str = "student") -> Learner | None:
    """Return the untrained student, or None for ``student = "none"``."""
    if config.student == "none":
        return None
    model = make_learner(
        config.student,
        shape=shared.transfer.inputs.shape[1:],
        classes=shared.dataset.classes,
        training=training_of(config, distill_epochs=config.distill_epochs),
        seed=derive(config.seed, "server", purpose, "init"),
    )
    set_threads(config.threads)
    see_public(model, shared.transfer)
    return model


def summarize(
    config: Config,
    shared: Federation,
    student: Learner | None,
    state: State,
    *,
    command: str = "",
    simulated: bool = True,
) -> dict[str, Any]:
    """Return the content of ``summary.json``. All reference figures are measured, none is remembered.

    Unless the run is ``simulated``, nobody here knows what the clients hold, and nothing is said about it.
    """
    first, last = state.reports[0], state.reports[-1]
    test = shared.test() if config.evaluate else None
    p = student.predict(test[0]) if student is not None and test is not None else None
    teacher = state.teacher
    scores = {name: last.metrics[name] for name in ("student", "ensemble", "local_mean", "local_best", "local_worst")}
    answers = sum(int(r.metrics["answered"] or 0) for r in state.reports) or 1
    asks = sum(int(r.metrics["asked"] or 0) for r in state.reports) or 1
    up = sum(r.metrics["bytes_up"] or 0 for r in state.reports)
    down = sum(r.metrics["bytes_down"] or 0 for r in state.reports)
    board = {
        **scores,
        "pooled": _pooled(config, shared) if simulated and config.pooled and config.evaluate else None,
        "fedavg": _fedavg(config, shared),
        "bytes_up_per_client": up / answers,
        "bytes_down_per_client": down / asks,
    }
    reliability = {}
    if p is not None and test is not None:
        reliability["student"] = metrics.reliability(p, test[1])
    if teacher is not None and shared.truth is not None and config.evaluate and config.keys == "samples":
        reliability["teacher"] = metrics.reliability(teacher.p, shared.truth[teacher.indices])
    data = shared.dataset
    told = simulated and config.protect == "none"  # counts are private too, and a report may be shown around
    return {
        "finished": True,
        "config": config.model_dump(),
        "provenance": _provenance(config, shared, command),
        "data": {
            "name": data.name,
            "license": data.license,
            "classes": data.classes,
            "class_names": list(data.class_names),
            "private": sum(len(part) for part in shared.parts) if told else None,
            "held": _held(shared) if told else None,
            "transfer": len(shared.transfer),
            "test": len(data.y_test),
            "clients": config.clients,
            "shape": list(shared.transfer.inputs.shape[1:]),
        },
        "scoreboard": board,
        "clients": {
            name: {
                "architecture": spec_of(config, int(name)) if name.isdecimal() else "?",
                "before": first.clients.get(name, {}).get("local"),
                "after": row.get("local"),
                **({"dishonest": simulated and _lies(config, name)} if config.attack != "none" else {}),
            }
            for name, row in last.clients.items()
        },
        "reliability": reliability,
        "confusion": metrics.confusion(p, test[1]) if p is not None and test is not None else None,
        "released": _released(config, state),
        "privacy": statement(config, len(state.reports)),
        "warnings": [
            *doubtful_delta(config),
            *warnings(config, board, first=first.metrics, test=len(data.y_test)),
            *(unsure(config, p, test[1]) if simulated and p is not None and test is not None else []),
        ],
    }


def warnings(config: Config, board: Mapping[str, Any], *, first: Mapping[str, Any] = EMPTY, test: int = 0) -> list[str]:
    """Return what a user should know before believing the student, each with likely causes.

    ``first`` are the metrics of round 1, when clients had learned from nobody else. Differences below two standard
    errors of an accuracy on ``test`` samples are none.
    """
    student, best, mean, ensemble = (board.get(k) for k in ("student", "local_best", "local_mean", "ensemble"))
    if student is None or best is None:
        return []
    error = 2 * math.sqrt(student * (1 - student) / test) if test else 0.0
    alone = config.rounds == 1 or config.feedback == "none"
    alone_best, alone_mean = (best, mean) if alone else (first.get("local_best"), first.get("local_mean"))
    found = []
    if best - student > error:
        causes = []
        if ensemble is not None and ensemble - student > LAG:
            causes.append(
                "the student lags behind its teacher: raise distill_epochs, enlarge the transfer set or student"
            )
        if ensemble is not None and ensemble < best:
            untried = ["expertise = density"] if config.expertise == "uniform" else []
            untried += ["sharpen = power"] if config.sharpen == "none" else []
            advice = f": try {' or '.join(untried)}" if untried and config.preset in OWN else ""
            causes.append(f"the ensemble is below it too{advice}")
        if not causes and alone_best is not None and alone_best > student:
            causes.append("one client holds most of what there is to know, or the transfer set is small")
        if not causes:
            causes.append("clients learn from the ensemble and from data of their own, which the student never sees")
        which = "the best local model" if config.clients > 1 else "the only client's own model"
        found.append(f"the student ({student:.1%}) is below {which} ({best:.1%}). Likely: {'; '.join(causes)}.")
    if config.clients > 1 and alone_mean is not None and alone_mean - student > error:
        when = "" if alone else " of round 1"
        found.append(
            f"the student ({student:.1%}) is below the average local model{when} ({alone_mean:.1%}): "
            "distillation made it worse."
        )
    return found


def unsure(config: Config, p: Array, y: Array) -> list[str]:
    """Return a line where the student's soft labels ``p`` (n, C) are right far more often than they claim.

    Private clients answer softly, so that noise moves their labels little; that can be mended afterwards, for free.
    """
    right, sure = metrics.accuracy(p, y), float(p.max(axis=1).mean()) if len(p) else 0.0
    replayed = config.record and (config.rounds == 1 or config.feedback == "none")
    if right is None or right - sure < UNSURE or config.protect == "none" or config.sharpen != "none" or not replayed:
        return []
    return [
        f"the student is right in {right:.0%} and {sure:.0%} sure on average: trust its classes, not its "
        "probabilities. Mended without a cost in privacy: fedkd replay RUN --set 'sharpen=power(beta=8.0)'"
    ]


def _pooled(config: Config, shared: Federation) -> float | None:
    """Train the student's model on all private data together, for as many passes as clients made in all rounds."""
    model = build_student(config, shared, purpose="pooled")
    if model is None:
        return None
    x, y = shared.pooled()
    for round_ in range(1, config.rounds + 1):
        model.fit(x, y, rng=generator(config.seed, "pooled", round_))
    test = shared.test()
    return metrics.accuracy(model.predict(test[0]), test[1])


def _lies(config: Config, name: str) -> bool:
    return name.isdecimal() and role(config, int(name)) is not HONEST


def _held(shared: Federation) -> dict[str, list[int]]:
    """Return how many samples of each class a client of a simulation holds."""
    classes = shared.dataset.classes
    return {str(k): np.bincount(shared.private(k)[1], minlength=classes).tolist() for k in range(len(shared.parts))}


def _fedavg(config: Config, shared: Federation) -> dict[str, Any]:
    """Return what averaging weights would send each way, or why it cannot be done in this federation."""
    if config.clients == 1:
        return {"possible": False, "why": ALONE, "bytes_per_client_round": None}
    built = {}
    for key in range(config.clients):
        spec = spec_of(config, key)
        if spec not in built:
            built[spec] = make_learner(
                spec,
                shape=shared.transfer.inputs.shape[1:],
                classes=shared.dataset.classes,
                training=training_of(config, distill_epochs=config.feedback_epochs),
                seed=0,
            )
            see_public(built[spec], shared.transfer)
    kinds = sorted({model.architecture for model in built.values()})
    if len(kinds) > 1:
        return {"possible": False, "why": f"{len(kinds)} different architectures", "bytes_per_client_round": None}
    (model,) = built.values() if len(built) == 1 else (next(iter(built.values())),)
    if not model.parameters:
        return {
            "possible": False,
            "why": f"{kinds[0]} is refitted in each round, not averaged",
            "bytes_per_client_round": None,
        }
    return {
        "possible": True,
        "why": f"float32, {model.parameters:,} parameters",
        "bytes_per_client_round": 4 * model.parameters,
    }


def _released(config: Config, state: State) -> list[dict[str, Any]]:
    """Return what left each device in a round, in words and bytes."""
    last = state.reports[-1]
    sizes = [row["bytes_up"] for row in last.clients.values() if row.get("bytes_up")]
    teacher = state.teacher
    rows, classes = teacher.p.shape if teacher is not None else (0, 0)
    judges = [spec for spec in (config.expertise, config.evidence) if spec not in ("uniform", "none")]
    weights = f", and how much each counts ({', '.join(judges)})" if judges else ""
    out = [
        {
            "what": f"soft labels{weights}",
            "form": f"{config.release}, {rows} samples x {classes} classes",
            "bytes": int(np.mean(sizes)) if sizes else 0,
            "to": "server",
        }
    ]
    if any(row.get("local") is not None for row in last.clients.values()):
        out.append(
            {
                "what": "test accuracy of the local model",
                "form": "one number (evaluate = true)",
                "bytes": None,
                "to": "server",
            }
        )
    return out


def _provenance(config: Config, shared: Federation, command: str) -> dict[str, Any]:
    versions = {}
    for package in ("flwr", "torch", "scikit-learn", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "fedkd": fedkd.__version__,
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
        "seed": config.seed,
        "transfer_sha256": shared.transfer.fingerprint,
        "command": command,
    }
