"""Audits of a configuration and of a run: what an attacker measures, set beside what was promised.

:func:`audit_config` runs the mechanisms of a configuration on neighbors, where an error lets more be told than was
promised; :func:`audit_labels` guesses from the recorded ballots of a run which classes each client holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedkd.config import Config
from fedkd.errors import ConfigError
from fedkd.files import write_atomic
from fedkd.learner import LEAST, Learner, PrivateLearner, Training, make_learner, private_trainer
from fedkd.preflight import check_data
from fedkd.privacy import neighbors
from fedkd.privacy.audit import Audit, LabelInference, audit_mechanism, infer_labels, label_distribution, rate_lower
from fedkd.privacy.gaussian import epsilon_of
from fedkd.privacy.neighbors import Statistic, Train
from fedkd.privacy.noise import Entropy
from fedkd.protect import least_of, protection_of, spending, weighs
from fedkd.registry import split
from fedkd.replay import Recording
from fedkd.report.page import DataTable, Panel, page, picture
from fedkd.report.table import Cell
from fedkd.report.template import AUDIT
from fedkd.rundir import DEPLOYMENT
from fedkd.softlabels import Array
from fedkd.units import percent

TELLING = 0.4
"""The noise multiplier that is audited where a configuration asks for more: there the fewest trials find an error."""
TELLING_ANSWER = 2.5
"""The epsilon at which a randomized answer is audited, whatever is configured: there few trials find an error."""
STEPS = 4
"""Steps of DP-SGD that are audited together, with as much more noise in each."""
PLANTED = math.sqrt(2)
"""How much too small the noise of the control is, which an audit that can see anything must find."""
CONFIDENCE = 0.99
SEEN = 100
"""How often a sampled example must be expected to be seen before its rate is judged."""
LISTED = 20
NUMBER = 10
"""Letters of a terminal's line for each number of a table, so that 80 have room for what it is of."""
COLORED = 32
"""Height and width of the images with which a network of torchvision is audited."""


@dataclass(frozen=True)
class Finding:
    """One mechanism: at least ``found`` with confidence, where at most ``claimed`` is promised of ``what``.

    ``configured`` is what the run uses, ``audited`` what was audited; ``caught`` says that the same audit failed a
    mechanism with a planted error. Where it did not, passing says little.
    """

    mechanism: str
    what: str
    configured: float
    audited: float
    claimed: float
    found: float
    caught: bool
    trials: int

    @property
    def passed(self) -> bool:
        """Whether nothing contradicts the promise."""
        return self.found <= self.claimed

    @property
    def verdict(self) -> str:
        """The result in a word or two."""
        return "FAIL" if not self.passed else "PASS" if self.caught else "PASS, but blind"


def audit_config(config: Config, *, trials: int, entropy: Entropy) -> list[Finding]:
    """Audit every mechanism that ``config`` uses, each with a control that has a planted error."""
    chosen = protection_of(config)
    if chosen.place == "nowhere":
        raise ConfigError("protect = 'none' promises nothing to audit; try --set protect=central --set epsilon=3")
    budget, findings = spending(config), list[Finding]()

    def noise(mechanism: str, make: Any, configured: float) -> None:
        findings.append(_noise(mechanism, make, configured, config.delta, trials, entropy))

    for event in budget.once:
        noise("expertise sketch", neighbors.sketch, float(event.noise_multiplier))  # type: ignore[union-attr]
    if chosen.place == "training":
        for spec in dict.fromkeys(split(config.learner, ",")):
            shape = _shape(spec, config)
            train = _trainer(spec, shape, 1.0, chosen.clip, STEPS)
            noise(
                f"DP-SGD of {spec}, {STEPS} steps",
                lambda z, train=train: neighbors.training(train, z * math.sqrt(STEPS)),
                budget.noise_multiplier,
            )
            if chosen.rate < 1:
                findings.append(_sampling(spec, shape, chosen.clip, chosen.rate, trials, entropy))
    elif chosen.place == "shares":
        least = least_of(config)
        noise(
            f"masked sum of {least} clients",
            lambda z: neighbors.shares(
                z,
                clip=chosen.clip,
                least=least,
                clients=config.clients,
                power=chosen.power,
                balance=chosen.balance if weighs(config) else 0.0,
            ),
            budget.noise_multiplier,
        )
    elif chosen.place == "answers":
        findings.append(_answers(chosen.classes, 1 / budget.noise_multiplier, trials, entropy))
    elif chosen.place == "labels":
        noise("noisy soft labels", neighbors.labels, budget.noise_multiplier)
    elif chosen.place == "votes":
        told = neighbors.mean if chosen.smooth else neighbors.votes
        noise("noisy sum of votes", told, budget.noise_multiplier)
        if chosen.threshold:
            noise("test of the largest count", neighbors.largest, chosen.test * budget.noise_multiplier)
    elif weighs(config):
        noise(
            "noisy sum of weighted ballots",
            lambda z: neighbors.weights(z, power=chosen.power, balance=chosen.balance),
            budget.noise_multiplier,
        )
    else:
        noise("noisy sum of ballots", lambda z: neighbors.mean(z, clip=chosen.clip), budget.noise_multiplier)
    return findings


def _answers(classes: int, configured: float, trials: int, entropy: Entropy) -> Finding:
    """Audit one randomized answer, with a control that keeps the class too often: of sqrt 2 times the epsilon."""

    def run(epsilon: float) -> Audit:
        release = neighbors.answers(epsilon, classes=classes)
        return audit_mechanism(
            release, TELLING_ANSWER, 0.0, trials=trials, confidence=CONFIDENCE, gaussian=False, entropy=entropy
        )

    right, planted = run(TELLING_ANSWER), run(PLANTED * TELLING_ANSWER)
    return Finding(
        "randomized answer",
        "epsilon",
        configured,
        TELLING_ANSWER,
        TELLING_ANSWER,
        right.lower,
        not planted.passed,
        trials,
    )


def _noise(mechanism: str, make: Any, configured: float, delta: float, trials: int, entropy: Entropy) -> Finding:
    audited = min(configured, TELLING)
    claimed = epsilon_of(1 / audited, delta)

    def run(release: Statistic) -> Audit:
        return audit_mechanism(release, claimed, delta, trials=trials, confidence=CONFIDENCE, entropy=entropy)

    right, planted = run(make(audited)), run(make(audited / PLANTED))
    return Finding(mechanism, "epsilon", configured, audited, claimed, right.lower, not planted.passed, trials)


def _sampling(spec: str, shape: tuple[int, ...], clip: float, rate: float, trials: int, entropy: Entropy) -> Finding:
    """Audit how often an example takes part in a step, with a control in which it does half as often again."""
    tries = max(trials, math.ceil(SEEN / rate))

    def least(true_rate: float) -> float:
        release = neighbors.inclusion(_trainer(spec, shape, 1.0, clip, 1), _trainer(spec, shape, true_rate, clip, 1))
        return rate_lower(int(sum(release(True, entropy) for _ in range(tries))), tries, confidence=CONFIDENCE)

    planted = least(min(1.0, 1.5 * rate))
    return Finding(f"Poisson batches of {spec}", "rate", rate, rate, rate, least(rate), planted > rate, tries)


def _shape(spec: str, config: Config) -> tuple[int, ...]:
    """Return the shape of inputs to audit a learner with: small for ours, that of the data for a user's own."""
    name = spec.partition("(")[0].strip()
    if ":" in name:
        shape: tuple[int, ...] = check_data(config).transfer.inputs.shape[1:]
        return shape
    side = COLORED if name == "torchvision" else LEAST.get(name, 0)
    return (1, side, side) if side else ()


def _trainer(spec: str, shape: tuple[int, ...], rate: float, clip: float, steps: int) -> Train:
    """Return DP-SGD of one learner from the same start each time, on rows (n, d) laid out in zeros of ``shape``."""
    made: list[tuple[PrivateLearner, Learner, dict[str, Array]]] = []

    def train(x: Array, y: Array, noise_multiplier: float, entropy: Entropy) -> Array:
        given = shape or x.shape[1:]
        if not made:
            fresh = make_learner(spec, shape=given, classes=3, training=Training(), seed=0)
            made.append((private_trainer(fresh, spec), fresh, fresh.state()))
        private, model, start = made[0]
        model.load(start)
        inputs = np.zeros((len(x), math.prod(given)), np.float32)
        inputs[:, : x.shape[1]] = x
        private.fit_private(
            inputs.reshape(len(x), *given),
            y,
            rate=rate,
            clip=clip,
            noise_multiplier=noise_multiplier,
            steps=steps,
            expected_batch=5.0,
            step=1.0,
            entropy=entropy,
        )
        numbers = [value.ravel() for _, value in sorted(model.state().items()) if value.dtype.kind == "f"]
        return np.concatenate(numbers)

    return train


def audit_labels(recording: Recording) -> tuple[list[int], LabelInference]:
    """Guess the classes of every client of a run from its recorded ballots; return the clients and how well it went."""
    config, shared = recording.config, recording.shared
    if recording.directory.began()["engine"] == DEPLOYMENT:
        raise ConfigError(f"run {recording.name!r} is of a deployment: what its clients hold is not known here")
    if config.keys != "samples":
        raise ConfigError(f"run {recording.name!r} has keys = {config.keys!r}: expected ballots about public 'samples'")
    classes, clients = shared.dataset.classes, [key for key in recording.clients if len(shared.parts[key])]
    answers: dict[int, list[tuple[Array, Array]]] = {key: [] for key in clients}
    for report in recording.reports:
        for key, release in recording.round(report.round).releases.items():
            if key in answers:
                answers[key].append((release.p, release.w))
    heard = [key for key in clients if answers[key]]
    if not heard:
        raise ConfigError(f"run {recording.name!r} has no ballot of a client with private data")
    truth = [np.bincount(shared.dataset.y[shared.parts[key]], minlength=classes) for key in heard]
    guesses = [label_distribution(*(np.concatenate(part) for part in zip(*answers[key], strict=True))) for key in heard]
    return heard, infer_labels(np.stack([count / count.sum() for count in truth]), np.stack(guesses))


@dataclass(frozen=True)
class Report:
    """What an audit leaves: ``facts`` that numbers mean nothing without, a table, and ``notes`` on how to read it.

    ``lead`` is what has to be read before the table.

    ``panels`` are what a page shows besides; a picture in one of them is a file of its own, too.
    """

    facts: dict[str, Any]
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: list[str]
    panels: Sequence[Panel] = ()
    lead: str = ""

    def table(self) -> Table:
        """Return the table for a terminal."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(self.heads[0], overflow="fold")
        for i, head in enumerate(self.heads[1:], start=1):
            words = [word for line in (self.heads, *self.rows) for word in line[i].split()]
            table.add_column(head, justify="right", max_width=max(NUMBER, *map(len, words)))
        for first, *rest in self.rows:
            table.add_row(Cell(first), *rest)
        return table

    def markdown(self) -> str:
        """Return all of it as Markdown."""
        lines = [
            f"# Audit: {self.facts['audit']}",
            "",
            *(f"- {key}: {value}" for key, value in self._plain().items() if key != "audit"),
            "",
            *([self.lead, ""] if self.lead else []),
            *(f"| {' | '.join(row)} |" for row in (self.heads, ("---",) * len(self.heads), *self.rows)),
            "",
            *(f"- {note}" for note in self.notes),
        ]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """Return all of it as one page."""
        plain = {key: value for key, value in self._plain().items() if key not in ("audit", "adversary", "result")}
        return page(
            AUDIT,
            page_title=f"Audit: {self.facts['audit']}",
            facts=[f"{key} {value}" for key, value in plain.items()],
            headline=self.facts.get("result", "No promise is checked here."),
            alarm=self.facts.get("result") == "FAIL",
            adversary=f"Against one who {self.facts['adversary']}.",
            found=DataTable("What was found", self.heads, self.rows),
            notes=[*([self.lead] if self.lead else []), *self.notes],
            panels=self.panels,
        )

    def save(self, folder: Path) -> None:
        """Write ``audit.json``, ``audit.md``, ``audit.html`` and the pictures."""
        notes = [*([self.lead] if self.lead else []), *self.notes]
        text = json.dumps({**self.facts, "notes": notes}, indent=1, allow_nan=False)
        files = {"audit.json": f"{text}\n", "audit.md": self.markdown(), "audit.html": self.html()}
        files |= {f"{panel.id}.svg": picture(panel.svg) for panel in self.panels if panel.svg}
        for name, content in files.items():
            write_atomic(folder / name, content.encode())

    def _plain(self) -> dict[str, Any]:
        return {key: value for key, value in self.facts.items() if not isinstance(value, list | dict)}


def mechanism_report(config: Config, findings: Sequence[Finding]) -> Report:
    """Return what is told of an audit of mechanisms."""
    chosen = protection_of(config)
    facts = {
        "audit": "mechanism",
        "result": "PASS" if all(finding.passed for finding in findings) else "FAIL",
        "protect": config.protect,
        "epsilon": config.epsilon,
        "delta": config.delta,
        "unit": chosen.unit.value if chosen.unit else "none",
        "neighbors": chosen.neighbors.value if chosen.neighbors else "none",
        "adversary": "knows all data but one unit and sees the noisy output itself",
        "confidence": CONFIDENCE,
        "noise": "from the operating system, not seeded",
        "findings": [{**asdict(finding), "result": finding.verdict} for finding in findings],
    }
    rows = [
        (
            f.mechanism,
            f"{f.audited:.3g}" + (f" for {f.configured:.3g}" if f.audited != f.configured else ""),
            f"{f.what} {f.claimed:.3f}",
            f"{f.found:.3f}",
            "found" if f.caught else "not found",
            f.verdict,
        )
        for f in findings
    ]
    return Report(
        facts,
        ("mechanism", "noise, rate or epsilon", "promised", "at least", "planted error", "result"),
        rows,
        [
            "promised and at least: the epsilon of what was audited, or how often an example takes part in a step",
            f"noise above {TELLING:g} is audited at {TELLING:g}, where few trials show an error; the code is the same",
            "planted error: whether the same audit finds noise too small by sqrt 2, answers too true by as much, or "
            "batches half as large again",
            "an audit finds errors; passing proves nothing that the accountant has not",
        ],
        lead=_less_noise(config, findings),
    )


def _less_noise(config: Config, findings: Sequence[Finding]) -> str:
    """Return why more epsilon may be promised in the table than of the run; "" where all is audited as configured."""
    if all(finding.audited == finding.configured for finding in findings):
        return ""
    return (
        f"The run is promised epsilon {config.epsilon:g}. Here its mechanisms have other noise than in the run, with "
        "which few trials show an error: what is promised of them below is for that noise, and not for the run."
    )


def label_report(config: Config, clients: Sequence[int], inferred: LabelInference) -> Report:
    """Return what is told of a label-distribution attack."""
    guess, uniform = float(np.mean(inferred.divergence)), float(np.mean(inferred.uniform))
    each = list(zip(clients, inferred.divergence, inferred.uniform, strict=True))
    facts = {
        "audit": "labels",
        "protect": config.protect,
        "partition": config.partition,
        "release": config.release,
        "seed": config.seed,
        "adversary": "sees a client's ballots, as the server does",
        "kl": round(guess, 4),
        "kl_uniform": round(uniform, 4),
        "correlation": None if math.isnan(inferred.correlation) else round(inferred.correlation, 4),
        "top": round(inferred.top, 4),
        "clients": {str(key): {"kl": round(a, 4), "kl_uniform": round(b, 4)} for key, a, b in each},
    }
    rows = [(str(key), f"{a:.3f}", f"{b:.3f}") for key, a, b in each[:LISTED]]
    return Report(
        facts,
        ("client", "KL of the guess", "KL of uniform"),
        [*rows, (f"mean of {len(each)}", f"{guess:.3f}", f"{uniform:.3f}")],
        [
            "the guess is the mean of a client's soft labels, the truth its classes; KL in nats, 0 is known exactly",
            f"correlation over all clients and classes {inferred.correlation:.2f}; most frequent class named for "
            f"{percent(inferred.top)} of the clients",
            "hiding examples (dp_sgd) does not hide this; hiding clients does",
        ],
    )
