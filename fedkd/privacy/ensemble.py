"""The teacher of protected ballots: which function makes it, for each place that noise can have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedkd.privacy.client_level import from_blurred, protected, weighted
from fedkd.privacy.noise import Entropy
from fedkd.privacy.responses import from_answers
from fedkd.privacy.votes import Voted, voted
from fedkd.protect import spending
from fedkd.records import Release
from fedkd.registry import parse
from fedkd.softlabels import Array

if TYPE_CHECKING:
    from fedkd.config import Config


def teacher_of(config: Config, releases: Sequence[Release], features: Array, classes: int, entropy: Entropy) -> Voted:
    """Return the teacher (M, C) of ``releases`` on rows with public ``features`` (M, d), as ``config`` protects them.

    Noise that the server adds comes from ``entropy``.
    """
    budget = spending(config)
    chosen, noise = budget.protection, budget.noise_multiplier
    match chosen.place:
        case "answers":
            return Voted(from_answers(releases, features, classes=classes, epsilon=1 / noise))
        case "labels":
            return Voted(from_blurred(releases, features, classes=classes, noise_multiplier=noise))
        case "votes":
            return voted(
                releases,
                features,
                classes=classes,
                noise_multiplier=noise,
                clients=config.clients,
                threshold=chosen.threshold,
                test=chosen.test,
                smooth=chosen.smooth,
                entropy=entropy,
            )
        case "mean" if parse(config.expertise)[0] != "uniform":
            teacher = weighted(
                releases,
                features,
                classes=classes,
                noise_multiplier=noise,
                power=chosen.power,
                balance=chosen.balance,
                entropy=entropy,
            )
            return Voted(teacher)
    teacher = protected(
        releases,
        features,
        classes=classes,
        noise_multiplier=noise,
        clip=chosen.clip,
        clients=config.clients,
        entropy=entropy,
    )
    return Voted(teacher)
