"""Byzantine FD, Roux et al., "On the Byzantine-Resilience of Distillation-Based Federated Learning", arXiv:2402.12265.

(ICLR 2025.) Liars may put all mass on the least likely class (LMA), on the class least correlated with the predicted
one (CPA), or hide among the ballots that an honest client makes (HIPS). The server may take a median, a geometric
median or the mean without what sticks out (filter), and with ExpGuard it trusts a client less, round by round, by
exp(-eta * distance to that aggregate). The paper's point: distillation is remarkably resilient, as a liar can say no
more than a label, and ExpGuard goes with any aggregate and makes it more so.

What differs from the paper: labels go back and not the server's weights, so honest clients learn from the teacher, a
poisoned one as well; attackers know their own predictions and not those of honest clients, which makes LMA, CPA and
HIPS weaker than there.

On data dealt evenly the point holds. Where labels are skewed an honest expert is far from any aggregate of all, and
is distrusted like a liar: ExpGuard costs accuracy without an attack, loses to the plain mean under HIPS, and helps
against LMA and CPA on some seeds only. The last rows judge a client where it claims to know, which skew does not spoil.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

SHARE = 0.4
SCENE = {"clients": 10}
EVEN, SKEWED = {"partition": "iid"}, {"partition": "dirichlet(alpha=0.3)"}
ATTACKS = {name.upper(): {"attack": f"{name}(share={SHARE})"} for name in ("lma", "cpa", "hips")}
LIARS: dict[str, dict[str, str]] = {"no attack": {}, **ATTACKS}
BASES = {"median": "median", "geometric median": "geometric_median", "filter": f"filter(byzantine={SHARE})"}
MEAN = {"aggregate": "mean", "defend": "none"}
DEFENSES = {
    "plain mean": MEAN,
    "geometric median": {"defend": "none"},
    **{f"ExpGuard, {name}": {"aggregate": base, "defend": f"exp_guard(base={base!r})"} for name, base in BASES.items()},
}
VARIANTS: Variants = {
    "even, no attack: plain mean": ("byzantine_fd", {**EVEN, **MEAN}),
    "even, no attack: ExpGuard": ("byzantine_fd", EVEN),
    **{
        f"even, {name}: {defense}": ("byzantine_fd", {**EVEN, **attack, **settings})
        for name, attack in ATTACKS.items()
        for defense, settings in DEFENSES.items()
    },
    **{
        f"skewed, {name}: {defense}": (preset, {**SKEWED, **liars, **settings})
        for name, liars in LIARS.items()
        for defense, preset, settings in (
            ("plain mean", "byzantine_fd", MEAN),
            ("ExpGuard", "byzantine_fd", {}),
            ("expert, cross_check", "expert", {"defend": "cross_check"}),
        )
    },
}
CLAIM = "under each attack ExpGuard is above the plain mean, on even and on skewed data"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether all guards helped wherever anyone lied."""
    score = {name: row.student or 0 for name, row in rows.items()}
    even = all(score[f"even, {a}: ExpGuard, {b}"] > score[f"even, {a}: plain mean"] for a in ATTACKS for b in BASES)
    return even and all(score[f"skewed, {a}: ExpGuard"] > score[f"skewed, {a}: plain mean"] for a in ATTACKS)


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds, SCENE)
