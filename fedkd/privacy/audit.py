"""What attacks say of a privacy claim: lower bounds on epsilon, membership inference, label-distribution inference.

An accountant proves how much can be learned at most; an audit measures how much was learned at least. Where the second
is above the first, the code is not what was proved. An audit finds bugs; it never proves privacy. Arrays of scores go
in, numbers with their confidence come out; who attacks what is the caller's business (:mod:`fedkd.privacy.neighbors`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from fedkd.errors import ConfigError, PrivacyError
from fedkd.privacy.gaussian import epsilon_of, mu_of
from fedkd.privacy.noise import Entropy
from fedkd.softlabels import TINY, Array

NORMAL = NormalDist()
PILOT = 0.1
"""Share of an audit's trials that choose the threshold. They are not counted after that, so the choice is free."""
FEW_SHADOWS = 64
"""Below so many shadow models LiRA takes one variance for all examples (Carlini et al., section VI.C)."""


# Rates: how often something happens, from how often it did.


def binomial_tail(k: int, n: int, p: float) -> float:
    """Return the chance of at least ``k`` in ``n`` tries that succeed with probability ``p`` each."""
    if k <= 0 or k > n or p <= 0 or p >= 1:
        return float(k <= 0 or (k <= n and p >= 1))
    if k < n * p:  # below the middle the other tail is the short one
        return 1 - binomial_tail(n - k + 1, n, 1 - p)
    j = np.arange(k, min(n, k + 5 * math.isqrt(n) + 50) + 1)  # ten deviations: what is left out has no digit
    growth = np.log((n - j[:-1]) / (j[:-1] + 1)) + math.log(p) - math.log1p(-p)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    first = math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))
    return min(1.0, first * float(np.exp(np.append(0.0, np.cumsum(growth))).sum()))


def rate_lower(k: int, n: int, *, confidence: float = 0.95) -> float:
    """Return the one-sided lower bound on a rate that was seen ``k`` times in ``n`` (Clopper and Pearson, 1934)."""
    if not 0 <= k <= n or n < 1:
        raise ConfigError(f"a rate needs 0 <= k <= n and n >= 1, got k={k} of n={n}")
    _check_confidence(confidence)
    return 0.0 if k == 0 else _largest(lambda p: binomial_tail(k, n, p) <= 1 - confidence, 0.0, k / n)


def rate_upper(k: int, n: int, *, confidence: float = 0.95) -> float:
    """Return the one-sided upper bound on a rate that was seen ``k`` times in ``n`` (Clopper and Pearson, 1934)."""
    return 1 - rate_lower(n - k, n, confidence=confidence)


# Lower bounds on epsilon from many runs.


@dataclass(frozen=True)
class Counts:
    """What a test said: of outputs ``without`` the unit and ``present`` with it, how often that the unit is there."""

    false_alarms: int
    without: int
    hits: int
    present: int

    def rates(self, confidence: float) -> tuple[float, float]:
        """Return (false alarm rate at most, hit rate at least), which hold together with ``confidence``."""
        each = (1 + confidence) / 2
        return (
            rate_upper(self.false_alarms, self.without, confidence=each),
            rate_lower(self.hits, self.present, confidence=each),
        )


def count(present: Array, without: Array, threshold: float) -> Counts:
    """Return what the test "score above ``threshold``" says of scores with the unit (n,) and without it (m,)."""
    return Counts(int((without > threshold).sum()), len(without), int((present > threshold).sum()), len(present))


def epsilon_bound(counts: Counts, *, delta: float = 0.0, confidence: float = 0.95) -> float:
    """Return the least epsilon at which an (epsilon, ``delta``)-private mechanism may show these counts.

    Privacy means hits <= e^epsilon false alarms + delta, and the same of silence; nothing else is assumed of the
    mechanism. The test must have been chosen without these counts.
    """
    alarm, hit = counts.rates(confidence)
    silent = max(hit - delta, 0) / alarm, max(1 - alarm - delta, 0) / (1 - hit)
    return max(0.0, math.log(max(*silent, 1.0)))


def mu_bound(counts: Counts, *, confidence: float = 0.95) -> float:
    """Return the least mu at which a mu-Gaussian mechanism may show these counts (GDP fit).

    Gaussian noise has hits = Phi(Phi^-1(false alarms) + mu) at every threshold (Dong et al., arXiv:1905.02383), so the
    middle of the curve, where counts are many, speaks for the tail that delta is about (Nasr et al., arXiv:2302.07956).
    """
    alarm, hit = counts.rates(confidence)
    if hit <= 0 or alarm >= 1:
        return 0.0
    return max(0.0, NORMAL.inv_cdf(hit) - NORMAL.inv_cdf(alarm))


@dataclass(frozen=True)
class Audit:
    """What an audit found: epsilon is at least ``lower`` with ``confidence``, where ``claimed`` was promised."""

    claimed: float
    delta: float
    lower: float
    mu: float
    confidence: float
    trials: int
    counts: Counts

    @property
    def passed(self) -> bool:
        """Whether nothing contradicts the claim."""
        return self.lower <= self.claimed


def audit_mechanism(
    release: Callable[[bool, Entropy], float],
    claimed: float,
    delta: float,
    *,
    trials: int,
    confidence: float = 0.99,
    gaussian: bool = True,
    entropy: Entropy,
) -> Audit:
    """Run a mechanism ``trials`` times on each of two neighbors and compare what can be told from what was claimed.

    ``release(present, entropy)`` returns a number that is larger where the unit is present, as the noisy output
    projected on the difference that the unit makes without noise. A right mechanism fails with a chance of at most 1 -
    ``confidence``. ``gaussian`` takes the noise for normal, by :func:`mu_bound`, which finds small errors; without it
    the bound holds for any mechanism and is far below the truth where ``delta`` is small.
    """
    if trials < 100:
        raise ConfigError(f"`trials` must be at least 100, got {trials}")
    if gaussian and not 0 < delta < 1:
        raise ConfigError(f"`delta` must be in (0, 1) for Gaussian noise, got {delta}")
    if not claimed >= 0:
        raise ConfigError(f"`claimed` must be an epsilon of at least 0, got {claimed}")
    _check_confidence(confidence)
    present = np.array([release(True, entropy) for _ in range(trials)], np.float64)
    without = np.array([release(False, entropy) for _ in range(trials)], np.float64)
    if not (np.isfinite(present).all() and np.isfinite(without).all()):
        raise PrivacyError("the mechanism put out numbers that are not finite, of which nothing can be said")
    pilot = int(PILOT * trials)
    threshold = _threshold(present[:pilot], without[:pilot], delta, gaussian)
    counts = count(present[pilot:], without[pilot:], threshold)
    mu = mu_bound(counts, confidence=confidence)
    lower = epsilon_of(mu, delta) if gaussian else epsilon_bound(counts, delta=delta, confidence=confidence)
    return Audit(claimed, delta, lower, mu, confidence, trials, counts)


def _threshold(present: Array, without: Array, delta: float, gaussian: bool) -> float:
    """Return the threshold that tells most: in the middle for Gaussian noise, else where the bound is largest."""
    together = np.concatenate([present, without])
    if gaussian:  # both errors are then alike, and the chance in mu is least
        return float(np.median(together))
    candidates = np.quantile(together, np.linspace(0.02, 0.98, 49))
    return float(max(candidates, key=lambda at: epsilon_bound(count(present, without, at), delta=delta)))


# Lower bounds on epsilon from one run.


def one_run(canaries: int, guesses: int, correct: int, *, delta: float = 0.0, confidence: float = 0.95) -> float:
    """Return the lower bound on epsilon from one run (Steinke, Nasr and Jagielski, arXiv:2305.08846, Theorem 5.2).

    Each of ``canaries`` examples was included by a fair coin; of ``guesses`` which ones, ``correct`` were right. An
    epsilon-private run gives each guess a chance of at most e^epsilon / (1 + e^epsilon), whatever the other coins.
    """
    _check_guesses(canaries, guesses, correct)
    _check_confidence(confidence)

    def contradicted(epsilon: float) -> bool:
        tails = _tails(guesses, epsilon)[: correct + 1][::-1]  # of at least correct, correct - 1, ..., 0
        slack = (tails[1:] - tails[0]) / np.arange(1, correct + 1)
        return float(tails[0] + 2 * canaries * delta * slack.max(initial=0)) <= 1 - confidence

    return _largest(contradicted, 0.0)


def one_run_gaussian(
    canaries: int, guesses: int, correct: int, *, delta: float = 1e-5, confidence: float = 0.95
) -> float:
    """Return the lower bound on epsilon from one run of a Gaussian mechanism (Mahloujifar et al., arXiv:2410.22235).

    The whole tradeoff curve f of the claim is used and not one (epsilon, delta) of it: with h_i the chance that there
    are exactly i right guesses times the share that is wrong, and r_i the same with the share that is right, f bounds
    each by the sum of the others. The chances that f allows are followed from the most right guesses down.
    """
    _check_guesses(canaries, guesses, correct)
    _check_confidence(confidence)
    if not 0 < delta < 1:
        raise ConfigError(f"`delta` must be in (0, 1) for Gaussian noise, got {delta}")

    def contradicted(epsilon: float) -> bool:
        mu = mu_of(epsilon, delta)
        right, wrong = (1 - confidence) * correct / canaries, (1 - confidence) * (guesses - correct) / canaries
        for i in range(correct - 1, -1, -1):
            least = max(wrong, _shifted(right, -mu))  # of wrong guesses there must be so many with so many right ones
            if least == wrong:
                break  # and nothing changes any more
            right, wrong = min(1.0, right + i / (guesses - i) * (least - wrong)), least
        return right + wrong > guesses / canaries  # more chance than there are guesses

    return _largest(contradicted, 0.0)


def correct_guesses(scores: Array, included: Array, *, present: int, absent: int) -> tuple[int, int]:
    """Return (guesses, right ones) where the ``present`` highest ``scores`` (m,) are guessed in, the lowest out.

    ``included`` (m,) is what the coins said. How many are guessed must be chosen without looking at it.
    """
    if present + absent > len(scores):
        raise ConfigError(f"at most {len(scores)} guesses can be made of as many canaries, got {present + absent}")
    order = np.argsort(-scores, kind="stable")
    right = included[order[:present]].sum() + (~included[order[len(order) - absent :]]).sum()
    return present + absent, int(right)


def _tails(n: int, epsilon: float) -> Array:
    """Return the chances (n + 1,) of at least 0, 1, ..., n right guesses of ``n``, each right with odds e^epsilon."""
    j, right = np.arange(n + 1), -math.log1p(math.exp(-epsilon))
    ways = np.append(0.0, np.cumsum(np.log((n - j[:-1]) / (j[:-1] + 1))))  # logarithms of the binomial coefficients
    mass = np.exp(ways + j * right + (n - j) * (right - epsilon))
    return np.asarray(np.minimum(np.cumsum(mass[::-1])[::-1], 1.0))


def _shifted(x: float, by: float) -> float:
    """Return Phi(Phi^-1(x) + by) for ``x`` in [0, 1]."""
    return x if x in (0.0, 1.0) else NORMAL.cdf(NORMAL.inv_cdf(x) + by)


# Membership inference.


@dataclass(frozen=True)
class Interval:
    """An estimate and the two-sided confidence interval around it."""

    value: float
    low: float
    high: float


def roc(members: Array, others: Array) -> tuple[Array, Array]:
    """Return false and true positive rates (t,), rising from 0 to 1, of all thresholds on scores; equal ones tie."""
    _check_scores(members, others)
    values = np.unique(np.concatenate([members, others]))[::-1]
    hits, alarms = (len(s) - np.searchsorted(np.sort(s), values, side="left") for s in (members, others))
    return np.append(0.0, alarms / len(others)), np.append(0.0, hits / len(members))


def auc(members: Array, others: Array, *, confidence: float = 0.95) -> Interval:
    """Return the chance that a member scores above a non-member, ties half, with DeLong's interval (DeLong, 1988)."""
    _check_scores(members, others)
    _check_confidence(confidence)
    together = _midranks(np.concatenate([members, others]))
    above = (together[: len(members)] - _midranks(members)) / len(others)  # of each member: others below it
    below = 1 - (together[len(members) :] - _midranks(others)) / len(members)
    variance = _variance(above) / len(members) + _variance(below) / len(others)
    value, half = float(above.mean()), NORMAL.inv_cdf((1 + confidence) / 2) * math.sqrt(variance)
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def tpr_at(
    members: Array,
    others: Array,
    fpr: float,
    *,
    rng: np.random.Generator,
    times: int = 500,
    confidence: float = 0.95,
) -> Interval:
    """Return the largest share of members found with at most ``fpr`` false alarms, with a bootstrap interval.

    Both groups are drawn anew ``times`` times, so that the interval knows that the threshold is an estimate, too.
    """
    if not 0 < fpr < 1:
        raise ConfigError(f"`fpr` must be in (0, 1), got {fpr}")
    _check_scores(members, others)
    _check_confidence(confidence)
    again = [found_at(rng.choice(members, len(members)), rng.choice(others, len(others)), fpr) for _ in range(times)]
    low, high = np.quantile(again, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(found_at(members, others, fpr), float(low), float(high))


def found_at(members: Array, others: Array, fpr: float) -> float:
    """Return the share of members above the threshold that lets through at most a share ``fpr`` of the others."""
    allowed = math.floor(fpr * len(others) + 1e-9)
    return float((members > np.partition(others, len(others) - 1 - allowed)[len(others) - 1 - allowed]).mean())


def over_examples(
    scores: Array,
    member: Array,
    measure: Callable[[Array, Array], float],
    *,
    rng: np.random.Generator,
    times: int = 200,
    confidence: float = 0.95,
) -> Interval:
    """Return ``measure(members, others)`` of scores (S, N) with a bootstrap interval over examples.

    What one example scores in S runs is not S independent cases: an example is drawn with all of its scores.
    """
    _check_confidence(confidence)
    if scores.shape != member.shape:
        raise ConfigError(f"`scores` and `member` must be of one shape (S, N), got {scores.shape} and {member.shape}")

    def of(scores: Array, member: Array) -> float:
        return measure(scores[member], scores[~member])

    drawn = (rng.integers(scores.shape[1], size=scores.shape[1]) for _ in range(times))
    low, high = np.quantile(
        [of(scores[:, i], member[:, i]) for i in drawn], [(1 - confidence) / 2, (1 + confidence) / 2]
    )
    return Interval(of(scores, member), float(low), float(high))


def confidence_logit(p: Array, y: Array) -> Array:
    """Return ln p_y - ln(1 - p_y) (n,) of soft labels (n, C) and labels: what LiRA takes for normal.

    The second term is summed over the other classes, so that it keeps its digits where p_y is near one.
    """
    p = np.asarray(p, np.float64)
    own = np.take_along_axis(p, y[:, None], axis=1)[:, 0]
    rest = np.where(np.arange(p.shape[1]) == y[:, None], 0.0, p).sum(axis=1)
    return np.asarray(np.log(np.maximum(own, TINY)) - np.log(np.maximum(rest, TINY)))


def lira(target: Array, shadow: Array, member: Array) -> Array:
    """Return the online likelihood ratio score (N,) that each example was a member (Carlini et al., arXiv:2112.03570).

    ``target`` (N,) are the target's :func:`confidence_logit`, ``shadow`` (S, N) those of models that were trained by
    the attacker, on example n where ``member`` (S, N). ln N(target; in) - ln N(target; out).
    """
    inside, outside = _moments(shadow, member), _moments(shadow, ~member)
    return np.asarray(_log_normal(target, *inside) - _log_normal(target, *outside))


def lira_offline(target: Array, shadow: Array, member: Array) -> Array:
    """Return the offline score (N,): how far ``target`` is above models without the example, in deviations.

    Nothing has to be trained for the example that is attacked; the paper's probability is Phi of it.
    """
    mean, variance = _moments(shadow, ~member)
    return np.asarray((target - mean) / np.sqrt(variance))


def leave_one_out(shadow: Array, member: Array, score: Callable[[Array, Array, Array], Array] = lira) -> Array:
    """Return scores (S, N) where each model in turn is the target, and all others are the attacker's shadows."""
    rest = ~np.eye(len(shadow), dtype=bool)
    return np.stack([score(shadow[s], shadow[rest[s]], member[rest[s]]) for s in range(len(shadow))])


def _moments(shadow: Array, chosen: Array) -> tuple[Array, Array]:
    """Return mean and variance (N,) over the models that are ``chosen`` (S, N) for each example."""
    shadow, times = np.asarray(shadow, np.float64), chosen.sum(axis=0)
    if not len(times) or times.min() < 2:
        raise ConfigError(f"LiRA needs 2 shadow models with and 2 without each example, got {times.min(initial=0)}")
    mean = np.where(chosen, shadow, 0).sum(axis=0) / times
    squares = np.where(chosen, (shadow - mean) ** 2, 0).sum(axis=0)
    if len(shadow) < FEW_SHADOWS:
        return mean, np.full(len(mean), max(float(squares.sum() / (times - 1).sum()), TINY))
    return mean, np.maximum(squares / (times - 1), TINY)


def _log_normal(x: Array, mean: Array, variance: Array) -> Array:
    return np.asarray(-((x - mean) ** 2) / (2 * variance) - np.log(variance) / 2)


def _midranks(x: Array) -> Array:
    """Return the ranks (n,) of numbers from 1 on; equal ones share the middle of theirs."""
    _, place, times = np.unique(x, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(times) - (times - 1) / 2)[place])


def _variance(x: Array) -> float:
    return float(x.var(ddof=1)) if len(x) > 1 else 0.0


# Label-distribution inference.


def label_distribution(p: Array, w: Array) -> Array:
    """Return the guess (C,) at what classes a client holds: the mean of its soft labels (M, C) where ``w`` (M,) > 0.

    Half an answer for each class is added, so that no class is ruled out by labels that name others only.
    """
    answered = np.asarray(p, np.float64)[w > 0]
    total = answered.sum(axis=0) + 0.5
    return np.asarray(total / total.sum())


def divergence(truth: Array, guess: Array) -> float:
    """Return KL(``truth`` || ``guess``) in nats of two distributions (C,): 0 where the guess is right."""
    known = truth > 0
    return float((truth[known] * np.log(truth[known] / np.maximum(guess[known], TINY))).sum())


@dataclass(frozen=True)
class LabelInference:
    """How well the classes of clients were guessed; each of (K,), KL in nats, beside a guess that knows nothing.

    ``correlation`` is over all clients and classes, nan where nothing varies; ``top`` is the share of clients whose
    most frequent class was named.
    """

    divergence: tuple[float, ...]
    uniform: tuple[float, ...]
    correlation: float
    top: float


def infer_labels(truth: Array, guess: Array) -> LabelInference:
    """Compare the class distributions of clients (K, C) with what was guessed of them (K, C)."""
    if truth.shape != guess.shape or not len(truth):
        raise ConfigError(f"`truth` and `guess` must be of one shape (K, C), got {truth.shape} and {guess.shape}")
    flat = np.full(truth.shape[1], 1 / truth.shape[1])
    varied = truth.std() > 1e-9 and guess.std() > 1e-9
    return LabelInference(
        tuple(divergence(t, g) for t, g in zip(truth, guess, strict=True)),
        tuple(divergence(t, flat) for t in truth),
        float(np.corrcoef(truth.ravel(), guess.ravel())[0, 1]) if varied else math.nan,
        float((truth.argmax(axis=1) == guess.argmax(axis=1)).mean()),
    )


def _largest(holds: Callable[[float], bool], low: float, high: float = math.inf) -> float:
    """Return where ``holds`` stops to hold, which it does once: the end at which it still does, or ``low``."""
    if not holds(low):
        return low
    if high == math.inf:
        high = 1.0
        while holds(high):
            low, high = high, 2 * high
            if high > 2**10:
                return low
    for _ in range(100):
        middle = (low + high) / 2
        if high - low <= 1e-12 * max(1.0, abs(high)) or middle in (low, high):
            break
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _check_guesses(canaries: int, guesses: int, correct: int) -> None:
    if not 0 <= correct <= guesses <= canaries or canaries < 1:
        raise ConfigError(f"needs 0 <= correct <= guesses <= canaries, got {correct}, {guesses} and {canaries}")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"`confidence` must be in (0, 1), got {confidence}")


def _check_scores(members: Array, others: Array) -> None:
    if not len(members) or not len(others):
        raise ConfigError(f"needs scores of members and of others, got {len(members)} and {len(others)}")
