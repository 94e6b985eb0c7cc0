"""SCARLET, Azuma et al., "Soft-Label Caching and Sharpening", arXiv:2504.19602 (IEEE TMC 2026).

Each round draws rows of the pool and asks only those whose label is not in the synchronized cache or has been there
for D rounds; the teacher is p^beta, normalized ("enhanced ERA"). The authors' code uses the label that replaces an
expired one without storing it, so it is bought twice: with rows drawn 1000 of 10,000 and D = 50 the uplink is 29.9 %
of DS-FL's, and 18.6 % when it is stored, as we do (store = True).

The cache is synchronized by broadcast = "float32 | delta". The paper signals for each row drawn CACHED, NEWLY CACHED or
EXPIRED, and hands absentees a catch-up package. Here a query names the rows of the teacher, and of those the ones that
the client has: CACHED. The others travel, NEWLY if the client had nothing there, EXPIRED if it had something older;
either way it stores them, so the two need no signal. Who was absent is known by its missing answers, and gets what it
missed when that is drawn again: the catch-up comes row by row, and only for rows that are needed.
With 1000 of 10,000 and D = 50 the frames down, over 2000 rounds, are 18.7 % of DS-FL's (30.3 % without storing), where
the teacher in full takes 98.8 % (`fedkd plan`).
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

VARIANTS: Variants = {
    "SCARLET, stored on expiry": ("scarlet", {"rounds": 8, "select": "cache_miss(size=100, duration=3)"}),
    "teacher down in full": (
        "scarlet",
        {"rounds": 8, "select": "cache_miss(size=100, duration=3)", "broadcast": "float32"},
    ),
    "as in the authors' code": ("scarlet", {"rounds": 8, "select": "cache_miss(size=100, duration=3, store=False)"}),
    "no cache": ("scarlet", {"rounds": 8, "select": "uniform(size=100)"}),
}
CLAIM = "storing on expiry sends less than the authors' code, and that less than no cache, up and down"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether the cache saved bytes both ways, and the delta changed nothing but bytes."""
    stored, full, authors, none = rows.values()
    same = (stored.student, stored.teacher, stored.up) == (full.student, full.teacher, full.up)
    up, down = stored.up < authors.up < none.up, stored.down < authors.down < none.down
    return same and up and down and stored.down < full.down


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds)
