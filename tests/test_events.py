import dataclasses
import math
import struct

import pytest

from fedkd import events
from fedkd.events import (
    DistributedGaussian,
    Gaussian,
    Laplace,
    NonPrivate,
    NoOp,
    Pure,
    RandomizedResponse,
    SampledGaussian,
    ZeroConcentrated,
)

SOME = [
    NonPrivate(),
    NoOp(),
    Gaussian(3.7),
    Gaussian(0.0, 5),
    SampledGaussian(0.01, 1.1, 1000),
    SampledGaussian(0.1, 2.0, 3, fixed=True),
    Laplace(10.0, 100),
    RandomizedResponse(10, 0.5, 100),
    DistributedGaussian(1.39, 100, 22.5, 10_000),
    Pure(0.5),
    ZeroConcentrated(0.125),
]


def test_every_kind_of_event_is_tried():
    assert {type(event) for event in SOME} == set(events.CODES.values())


@pytest.mark.parametrize("event", SOME, ids=repr)
def test_an_event_comes_back_from_bytes_and_from_fields(event):
    code, *rest = events.pack(event)
    assert len(rest) == events.size(code)
    assert events.unpack(code, bytes(rest)) == event
    assert events.from_fields(code, dataclasses.asdict(event)) == event
    assert events.valid(event)


@pytest.mark.parametrize(
    "event",
    [
        Gaussian(-1.0),
        Gaussian(math.nan),
        Gaussian(math.inf),
        Gaussian(1.0, 0),
        Gaussian(1.0, 2.5),
        SampledGaussian(1.5, 1.0),
        SampledGaussian(0.1, 1.0, fixed=2),
        RandomizedResponse(1, 1.0),
        Pure(-0.1),
        ZeroConcentrated(True),
        "Gaussian(3.7)",
        None,
    ],
    ids=repr,
)
def test_an_event_that_makes_no_sense_is_not_valid_and_travels_as_non_private(event):
    assert not events.valid(event)
    assert events.pack(event) == b"\0"


def test_bytes_that_make_no_sense_fail_closed():
    assert events.unpack(200, b"") == NonPrivate()
    assert events.unpack(2, struct.pack("<d", 3.7)) == NonPrivate()
    assert events.unpack(2, struct.pack("<2d", 3.7, math.inf)) == NonPrivate()
    assert events.unpack(2, struct.pack("<2d", 3.7, 0.5)) == NonPrivate()
    assert events.unpack(2, struct.pack("<2d", -3.7, 1)) == NonPrivate()
    assert events.from_fields(2, {"noise_multiplier": 3.7, "sensitivity": 1.0}) == NonPrivate()
    assert events.from_fields(2, {"noise_multiplier": "3.7"}) == NonPrivate()


def test_the_bytes_of_an_event_stay_what_they_are():
    assert events.pack(NoOp()) == b"\1"
    assert events.pack(Gaussian(2.0)).hex() == "02" + "0000000000000040" + "000000000000f03f"
