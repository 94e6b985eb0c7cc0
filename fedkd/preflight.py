"""What can be known to fail before a run starts: its data, its shares, its models. One clear line instead of K.

Nothing is computed in vain: the federation is cached for the run that follows, and the server needs torch anyway.
"""

from __future__ import annotations

import re

import numpy as np

from fedkd.attack import attack, dishonest
from fedkd.augment import augment
from fedkd.client import training_of
from fedkd.config import Config, mixed
from fedkd.errors import ConfigError, DataError, FedkdError, SpecError
from fedkd.federation import Federation, federation
from fedkd.learner import check_private, make_learner
from fedkd.memory import Memory, Pool
from fedkd.protect import protection_of
from fedkd.random import generator
from fedkd.select import select
from fedkd.tell import describe

ABSENT = re.compile(r"(?:\w+\.)*(\w+)\(\) missing \d+ required (?:positional|keyword-only) arguments?: (.+)")
"""How Python says that a function was not given what it wants."""


def check_data(config: Config) -> Federation:
    """Return the federation of ``config``; raise :class:`DataError` unless it can be loaded, cut and dealt.

    Loads no framework. Tries the first selection, too, which must fit the transfer set.
    """
    check_attack(config)
    try:
        shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    except OSError as error:
        raise DataError(f"data {config.data!r}: cannot read {error.filename}: {error.strerror}") from None
    if config.labels != "none" and shared.truth is None:
        raise ConfigError(f"labels = {config.labels!r} needs a transfer set with labels, got {config.transfer!r}")
    for view in augment.chain(config.augment):
        view(shared.transfer.inputs[:2], np.random.default_rng(0))
    if config.keys == "samples":
        rows, classes = len(shared.transfer), shared.dataset.classes
        pool = Pool(
            Memory.empty(rows, classes),
            1,
            (lambda asked: np.full((len(asked), classes), 1 / classes)) if config.student != "none" else None,
            (lambda: np.ones(rows, bool)) if config.labels != "none" else None,
        )
        select.build(config.select)(pool, np.random.default_rng(0))
    return shared


def liars(config: Config) -> int:
    """Return how many clients of a simulation attack."""
    return len(dishonest(attack.build(config.attack)(), config.clients, generator(config.seed, "attack")))


def check_attack(config: Config) -> None:
    """Raise :class:`ConfigError` if a share of liars is asked for and there are too few clients for a single one."""
    if attack.build(config.attack)().share > 0 and not liars(config):
        of = f"0 of {config.clients} client{'s' if config.clients > 1 else ''} lie"
        raise ConfigError(f"attack = {config.attack!r}: {of}, its share is rounded down; raise share or clients")


def check_models(config: Config, shared: Federation) -> None:
    """Build one learner of each kind in the mix, and the student, for the data at hand; raise the first error.

    This imports the frameworks that they need and calls a user's factory once more than the run does.
    """
    clients = mixed(config.learner)[: config.clients]
    specs = [*clients, *([] if config.student == "none" else [config.student])]
    for spec in dict.fromkeys(specs):
        try:
            made = make_learner(
                spec,
                shape=shared.transfer.inputs.shape[1:],
                classes=shared.dataset.classes,
                training=training_of(config, distill_epochs=config.distill_epochs),
                seed=0,
            )
            if spec in clients and protection_of(config).place == "training":
                check_private(made, spec, shared.transfer.inputs.shape[1:])
        except FedkdError:
            raise
        except Exception as error:  # a user's factory may raise anything
            raise SpecError(f"learner {spec!r}: {unoffered(error, spec) or describe(error)}") from None


def unoffered(error: Exception, spec: str) -> str | None:
    """Return what the factory of ``spec`` wants and cannot have, if that is what ``error`` says."""
    found = ABSENT.fullmatch(str(error)) if isinstance(error, TypeError) else None
    if found is None or found[1] != spec.rpartition(":")[2]:
        return None
    return f"{found[1]}() wants {found[2]}; fedkd offers shape, classes, seed"
