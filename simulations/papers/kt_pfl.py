"""KT-pFL, Zhang et al., "Parameterized Knowledge Transfer for Personalized Federated Learning", arXiv:2111.02862.

Client k learns from its own mixture sum_m c_km p_m of all ballots. The paper learns c by gradient steps on a squared
error with a penalty on the distance of c from 1/K; the minimum has a closed form, which is used here.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

VARIANTS: Variants = {
    "KT-pFL": ("kt_pfl", {}),
    "one teacher for all (penalty 1000)": ("kt_pfl", {"feedback": "personal(penalty=1000.0)"}),
    "alone": ("kt_pfl", {"feedback": "none"}),
}
CLAIM = "clients with personal teachers are better than alone"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether personal teachers helped the clients."""
    own, one, alone = rows.values()
    return (own.local or 0) > (alone.local or 0)


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds)
