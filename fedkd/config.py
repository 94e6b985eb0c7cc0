"""One strict, typed, flat configuration. The same keys serve TOML, ``--set``, presets and Flower's run config.

Precedence: defaults < preset < file < environment (``FEDKD_*``) < ``--set``. Every key remembers where its value
came from. Nothing here imports torch, so a typo costs milliseconds and not the import of a framework.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedkd import parts
from fedkd.errors import ConfigError, FedkdError, SpecError, did_you_mean
from fedkd.privacy.conflicts import contradictions
from fedkd.registry import parse, split

KEYS = ("samples", "classes")
NOISES = ("system", "seeded")
RESOLVED = "resolved"
"""Key of a run config that holds every value as it is meant, the preset applied."""
RUN_NAME = "run-name"
"""Key of a run config that names the run in the ledgers of its clients: the same when it goes on after a crash."""


class Config(BaseModel):
    """Everything that decides what a run computes. Field order is the order of the pipeline."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    preset: str = Field("expert", description="named set of parts that the keys below override")
    seed: int = Field(0, ge=0, description="all random streams derive from it")
    rounds: int = Field(3, ge=1, description="cycles of ask, release, aggregate, distill")
    clients: int = Field(8, ge=1, description="clients in a simulation; in a deployment, nodes to wait for")
    data: str = Field("digits", description="labeled data that the clients hold, and the test set")
    transfer: str = Field("split(size=400)", description="public unlabeled inputs; split(size=n) cuts them from data")
    partition: str = Field("dirichlet(alpha=0.3)", description="how data is dealt to the clients")
    attack: str = Field("none", description="what dishonest clients do, for simulations")
    labels: str = Field("none", description="what may be made of public labels of the transfer set")
    keys: str = Field("samples", description="what ballots are about: samples of the transfer set, or classes")
    select: str = Field("all", description="which rows of the transfer set are asked in a round")
    learner: str = Field("cnn, mlp, forest, logistic", description="the clients' models, dealt in turn")
    student: str = Field("cnn", description="the server's model")
    expertise: str = Field("density", description="how much a client's ballot counts, sample by sample")
    evidence: str = Field(
        "neighbors", description="what a client's labeled examples say beside its model, class by class"
    )
    release: str = Field("float16", description="chain of mechanisms on what leaves a client")
    defend: str = Field("none", description="chain on all ballots of a round, before they are aggregated")
    aggregate: str = Field("mean", description="ballots and weights to teacher")
    sharpen: str = Field("none", description="lowers the teacher's entropy")
    replay: int = Field(1, ge=1, description="rounds whose teachers the student learns from; the newest wins on a row")
    lesson: str = Field("none", description="chain on what the student is about to learn of the teacher")
    distill: str = Field("kl(temperature=1.0)", description="loss that teaches a model the teacher's soft labels")
    augment: str = Field("none", description="chain of views of the inputs that networks learn, drawn in each step")
    schedule: str = Field("constant", description="how the learning rate goes while a network learns in a round")
    feedback: str = Field("teacher", description="what goes back to the clients with the next query")
    broadcast: str = Field("float16", description="chain on what goes back to the clients")
    protect: str = Field("none", description="how privacy is had; none means NO privacy guarantee")
    epsilon: float = Field(0.0, ge=0, description="privacy budget of everything that leaves in all rounds; 0: none")
    delta: float = Field(1e-5, gt=0, lt=1, description="chance that epsilon does not hold; below 1 / units")
    noise: str = Field("system", description="entropy of private noise: system, or seeded, which is NOT private")
    ledger: str = Field("", description="folder where the server keeps what all runs spend on the same clients")
    ledger_epsilon: float = Field(0.0, ge=0, description="what all runs of that ledger may spend; 0: epsilon, one run")
    local_epochs: int = Field(5, ge=0, description="passes over the private data in a round")
    distill_epochs: int = Field(30, ge=0, description="passes of the student over the teacher's rows in a round")
    feedback_epochs: int = Field(5, ge=0, description="passes of a client over what came back")
    batch_size: int = Field(32, ge=1, description="samples in a gradient step")
    learning_rate: float = Field(0.003, gt=0, description="of Adam, for clients and student")
    quorum: float = Field(0.5, gt=0, le=1, description="share of asked clients that a round needs")
    deadline: float = Field(600.0, gt=0, description="seconds a round waits for answers")
    grace: float = Field(600.0, ge=0, description="seconds a round waits on after the quorum is met")
    late: bool = Field(True, description="count answers of an earlier round that arrive late")
    remember: int = Field(5, ge=0, description="rounds for which the last ballot of a client away is kept and counts")
    evaluate: bool = Field(True, description="measure accuracy on test data; clients send theirs if protect = none")
    pooled: bool = Field(True, description="train the pooled-data reference after a simulation")
    threads: int = Field(1, ge=1, description="torch threads; more than 1 is faster and not bit-reproducible")
    output: str = Field("", description="run directory; empty: nothing is written")
    resume: bool = Field(False, description="continue from the checkpoint in output")
    record: bool = Field(True, description="keep all ballots for fedkd replay; without, the last if remember > 0")

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, given: Any) -> Any:
        """Fill in what the named preset sets and the caller does not: ``Config(preset="ds_fl")`` is DS-FL."""
        if isinstance(given, dict) and isinstance(given.get("preset"), str):
            try:
                return {**parts.preset(given["preset"]), **given}
            except ConfigError as error:
                raise ValueError(f"preset: {error}") from None
        return given

    @model_validator(mode="after")
    def _parts_exist_and_agree(self) -> Self:
        problems: list[str] = []
        for key, check in parts.CHECKS.items():
            try:
                check(getattr(self, key))
            except FedkdError as error:
                problems.append(f"{key}: {error}")
        problems = problems or _contradictions(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def identity(self) -> dict[str, Any]:
        """Return what decides results: all but how long to go on, how long to wait, and where to write."""
        free = {"output", "resume", "rounds", "deadline", "grace", "pooled", "record", "ledger", "ledger_epsilon"}
        if self.protect != "none":
            free.remove("rounds")  # the budget is spread over all of them, so one more would change the noise
        return {key: value for key, value in self.model_dump().items() if key not in free}

    def to_run_config(self) -> dict[str, str | int | float | bool]:
        """Return the flat, kebab-case form that Flower carries."""
        return {**{key.replace("_", "-"): value for key, value in self.model_dump().items()}, RESOLVED: True}

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> Config:
        """Read Flower's run config; keys must be exactly ours.

        Flower merges the defaults of ``pyproject.toml`` into what ``flwr run -c "preset='ds_fl'"`` gives, so a value
        that equals its default counts as not given, and the preset decides. ``RESOLVED`` says that it has decided.
        """
        return cls.read(_given(run_config), where="run config")

    @classmethod
    def read(cls, values: Mapping[str, Any], *, where: str | Mapping[str, str]) -> Config:
        """Validate ``values``; raise one :class:`ConfigError` that lists every problem.

        ``where`` says where they come from, all of them or key by key.
        """
        floats = {name for name, field in cls.model_fields.items() if field.annotation is float}
        cleaned: dict[str, Any] = {
            key: float(value) if key in floats and type(value) is int else value for key, value in values.items()
        }
        try:
            return cls(**cleaned)
        except ValidationError as error:
            lines = _sentences(error, where)
            raise ConfigError("\n".join([*lines, *_ready_made(cleaned, lines, where)])) from None


class Resolved:
    """A valid :class:`Config` together with the origin of every key."""

    def __init__(self, config: Config, origins: Mapping[str, str]) -> None:
        """Keep ``config`` and, for each key, where its value came from."""
        self.config = config
        self.origins = dict(origins)

    def to_toml(self) -> str:
        """Return the configuration as TOML that can be given back with ``--config``, each key with its origin."""
        width = max(len(key) for key in Config.model_fields)
        lines = ["# Resolved configuration; the comment says where a value came from."]
        for key, value in self.config.model_dump().items():
            lines.append(f"{key:<{width}} = {_toml(value)}  # {self.origins.get(key, 'default')}")
        return "\n".join(lines) + "\n"


def resolve(
    *,
    preset: str | None = None,
    file: Path | None = None,
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Resolved:
    """Merge all sources by precedence and validate the result."""
    layers: list[tuple[str, dict[str, Any]]] = []
    if file is not None:
        layers.append((str(file), _read_file(file)))
    environ = os.environ if environ is None else environ
    named = {key.removeprefix("FEDKD_").lower(): text for key, text in environ.items() if key.startswith("FEDKD_")}
    given = {
        key: text for key, text in named.items() if key in Config.model_fields
    }  # FEDKD_HOME and others are not ours
    if given:
        layers.append(("environment", {key: _value(key, text) for key, text in given.items()}))
    layers.append(("--set", dict(_assignment(text) for text in sets)))
    name = preset or next((v["preset"] for _, v in reversed(layers) if "preset" in v), "expert")
    layers.insert(0, (f"preset {name}", {"preset": name, **parts.preset(name)}))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for where, layer in layers:
        for key, value in layer.items():
            if key == "preset" and where != f"preset {name}":
                continue
            values[key] = value
            origins[key] = where
    return Resolved(Config.read(values, where=origins), origins)


def _contradictions(config: Config) -> list[str]:
    problems = []
    problems += contradictions(config)
    if config.noise not in NOISES:
        problems.append(
            f"noise: must be one of {', '.join(NOISES)}, got {config.noise!r}.{did_you_mean(config.noise, NOISES)}"
        )
    if config.resume and not config.output:
        problems.append("resume: needs output, the run directory to continue")
    if config.student == "none" and config.feedback == "student":
        problems.append("feedback: 'student' needs a student, got student = 'none'")
    if config.student == "none" and config.labels != "none":
        problems.append(f"labels: {config.labels!r} needs a student, got student = 'none'")
    if config.student == "none" and config.lesson != "none":
        problems.append(f"lesson: {config.lesson!r} needs a student, got student = 'none'")
    if config.keys not in KEYS:
        problems.append(
            f"keys: must be one of {', '.join(KEYS)}, got {config.keys!r}.{did_you_mean(config.keys, KEYS)}"
        )
    if config.keys == "classes" and config.student != "none":
        problems.append("keys: 'classes' says nothing about samples that a student could learn; set student = 'none'")
    if config.keys == "classes" and config.expertise != "uniform":
        problems.append(
            f"keys: 'classes' knows no samples to weigh; set expertise = 'uniform', not {config.expertise!r}"
        )
    if config.keys == "classes" and parse(config.evidence)[0] != "none":
        problems.append(f"keys: 'classes' knows no samples to judge; set evidence = 'none', not {config.evidence!r}")
    return problems


def _sentences(error: ValidationError, where: str | Mapping[str, str]) -> list[str]:
    """Return one line for each problem: what, got, expected, nearest match."""
    lines: list[str] = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            hint = did_you_mean(key, Config.model_fields)
            origin = where if isinstance(where, str) else where[key]
            lines.append(f"unknown key '{key}' ({origin}).{hint or ' See: fedkd config show.'}")
        elif problem["type"] == "value_error":
            lines += str(problem["ctx"]["error"]).splitlines()
        else:
            lines.append(f"{key} must be {_expected(problem['type'], problem)}, got {problem['input']!r}")
    return lines


READY = {"dp_sgd": "private", "central": "private_clients", "distributed": "private_masked"}
"""Protections to the presets that set what goes with them."""


def _ready_made(values: Mapping[str, Any], lines: Sequence[str], where: str | Mapping[str, str]) -> list[str]:
    """Return the preset that would settle all of ``lines``, if there is one and nothing was given that it leaves."""
    try:
        name = READY.get(parse(str(values.get("protect", "none")))[0])
    except SpecError:
        return []
    keys = {line.partition(":")[0] for line in lines}
    if name is None or isinstance(where, str) or values.get("preset") == name:
        return []
    given = any(not where.get(key, "preset").startswith("preset") for key in keys)
    return [] if given or not keys <= parts.preset(name).keys() else [f"`--preset {name}` sets all of this"]


BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "finite": "finite"}


def _expected(kind: str, problem: Mapping[str, Any]) -> str:
    """Return what would be right, in words: pydantic knows the ``kind`` of problem, and the bound that was passed."""
    bounds = [f"{words} {problem['ctx'][key]:g}" for key, words in BOUNDS.items() if key in problem.get("ctx", {})]
    return (
        bounds[0] if bounds else KINDS.get(kind.partition("_")[0], str(problem["msg"]).removeprefix("Input should be "))
    )


def _given(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run config says beyond the defaults; all of it where the preset has been applied."""
    values = {key.replace("-", "_"): value for key, value in run_config.items() if key not in (RESOLVED, RUN_NAME)}
    if run_config.get(RESOLVED, False):
        return values
    defaults = {name: field.default for name, field in Config.model_fields.items()}
    return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}


def _read_file(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"cannot read configuration {str(file)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None
    if any(isinstance(table.get(key), dict | list) for key in ("base", "grid", "cases")):
        raise ConfigError(f"{file} is a sweep, many runs; run it with: fedkd sweep {file}")
    if "tool" in table:  # a pyproject.toml of a Flower app
        return _given(table["tool"].get("flwr", {}).get("app", {}).get("config", {}))
    return {key.replace("-", "_"): value for key, value in table.items()}


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key:
        raise ConfigError(f"cannot read --set {text!r}; write it like --set rounds=5")
    return key, _value(key, value.strip())


def _value(key: str, text: str) -> Any:
    """Read ``text`` as TOML; bare words, and whatever a string key is given, are strings."""
    field = Config.model_fields.get(key)
    if field is not None and field.annotation is str:
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)


def mixed(spec: str) -> list[str]:
    """Return the members of a comma-separated mix such as ``"cnn, mlp"``."""
    return split(spec, ",")
