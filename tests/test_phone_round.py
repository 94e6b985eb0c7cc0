"""Phones in headless Chromium answer rounds that a Fleet in this process asks: what arrives, once, and at what cost."""

import json

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from fleet_server import FleetServer
from phone_front import offer_of, served

from fedkd.codec import decode_release, encode_query
from fedkd.config import Config
from fedkd.events import NonPrivate, NoOp, SampledGaussian
from fedkd.federation import federation
from fedkd.fleet.objects import read_records
from fedkd.protect import spending
from fedkd.records import Query, Teacher

pytestmark = [pytest.mark.chromium, pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary found")]

CONFIG = Config(clients=3, learner="cnn", rounds=2, local_epochs=3)
PRIVATE = Config(clients=3, learner="linear", rounds=2, protect="dp_sgd(rate=0.2)", epsilon=4.0, expertise="uniform",
                 evidence="none")  # fmt: skip
SHARE = 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("chromium")) as one:
        yield one


@pytest.fixture
def place(browser, tmp_path, request):
    """Return a function that lets a phone join a run of a configuration: ``(phone, fleet, front, query)``."""

    def enter(config, *, asked=None):
        fleet = FleetServer(asked or config)
        front = stack(served(tmp_path, offer_of(config), fleet))
        phone = browser.phone(front.invitation())
        phone.touch("Choose my data")
        phone.type("#share", str(SHARE))
        phone.touch("Take this share")
        phone.wait(f"examples: demo share {SHARE}")
        phone.touch("Take part")
        phone.wait("Waiting for the first question.")
        shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
        query = Query(1, np.arange(len(shared.transfer)), shared.dataset.classes, shared.transfer.fingerprint)
        return phone, fleet, front, shared, query

    def stack(context):
        found = context.__enter__()
        request.addfinalizer(lambda: context.__exit__(None, None, None))
        return found

    return enter


def records_of(answer):
    """Return the records of an answer that arrived in objects."""
    metadata, objects = answer
    return read_records(metadata["message_id"], objects)


def ask(fleet, query, **how):
    """Ask, and return the records of the answer."""
    name = fleet.ask(encode_query(query, len(query.indices), "float16"), **how)
    return records_of(fleet.wait_for_answers(len(fleet.answers) + (name not in fleet.answers), timeout=90)[name])


def test_a_phone_answers_what_python_reads_and_learns_from_what_comes_back(place):
    phone, fleet, _, shared, query = place(CONFIG)
    first = ask(fleet, query)
    assert set(first) == {"release"} and set(first["release"]) == {"frame", "salt"}  # no accuracy, no counts, no times
    client, release = decode_release(first["release"]["frame"], query)
    assert client == 18364758544493064720 and release.event == NonPrivate()
    mine, labels = shared.private(SHARE)
    assert np.ptp(release.w) > 0  # the density of what it holds
    truth = shared.truth
    held = np.isin(truth, np.unique(labels[np.isin(labels, np.flatnonzero(np.bincount(labels) >= 10))]))
    assert (release.p.argmax(axis=1) == truth)[held].mean() > 0.7
    phone.wait("Waiting for the next question.")
    assert f"{len(first['release']['frame']) / 1000:.3g}" in phone.run("document.querySelector('table').textContent")
    again = ask(fleet, query)  # a server that lost the round asks once more: the same labels, under another salt
    assert again["release"]["frame"] == first["release"]["frame"]
    assert again["release"]["salt"] != first["release"]["salt"]
    known = np.eye(10, dtype=np.float32)[truth]
    taught = ask(fleet, Query(2, query.indices, 10, query.fingerprint, Teacher(known, query.indices)))
    _, second = decode_release(taught["release"]["frame"], Query(2, query.indices, 10, query.fingerprint))
    better = (second.p.argmax(axis=1) == truth).mean()
    assert better > (release.p.argmax(axis=1) == truth).mean() + 0.05
    fleet.spoil = lambda route, fields: (403, b'{"code": 2007}', {}) if route == "get-run" else None
    phone.wait("Your phone answered 3 times")
    assert phone.complaints() == [] or all("/v1/fleet/get-run" in line for line in phone.complaints())


def test_a_page_that_is_reloaded_in_the_middle_of_a_round_answers_it_once(place):
    phone, fleet, front, _, query = place(Config(clients=3, learner="cnn", local_epochs=25))
    fleet.ask(encode_query(query, len(query.indices), "float16"))
    phone.wait("Learning from your data")
    assert fleet.answers == {}
    phone.reload()
    phone.wait("Round 1 of 3")
    fleet.wait_for_answers(1, timeout=90)
    phone.wait("Waiting for the next question.")
    assert fleet.calls.count("push-messages") == 1 and len(front.registry.members()) == 1
    assert fleet.calls.count("activate-node") == 0  # it never went away
    phone.reload()
    phone.wait("Waiting for the next question.")
    assert fleet.calls.count("push-messages") == 1


def test_noise_is_that_of_the_plan_and_a_question_is_never_trained_twice(place):
    phone, fleet, _, _, query = place(PRIVATE)
    first = ask(fleet, query)
    _, release = decode_release(first["release"]["frame"], query)
    plan = spending(PRIVATE)
    assert isinstance(release.event, SampledGaussian)
    assert release.event.noise_multiplier >= plan.noise_multiplier * 0.999  # no less than what the run promises
    assert (release.event.count, release.event.rate) == (plan.steps, 0.2)
    assert ask(fleet, query)["release"]["frame"] == first["release"]["frame"]
    other = Query(1, query.indices[:100], 10, query.fingerprint)
    name = fleet.ask(encode_query(other, len(query.indices), "float16"))
    said = records_of(fleet.wait_for_answers(3, timeout=90)[name])
    assert "refusal" in said or decode_release(said["release"]["frame"], other)[1].event == NoOp()
    names = phone.run("indexedDB.databases().then(all => all.map(d => d.name))")
    assert sum(name.startswith("fedkd-ledger") for name in names) == 1


def test_settings_that_nobody_agreed_to_are_refused_and_the_owner_is_told(place):
    louder = json.loads(json.dumps(PRIVATE.to_run_config())) | {"protect": "none", "epsilon": 0.0}
    phone, fleet, _, _, query = place(PRIVATE, asked=louder)
    said = ask(fleet, query)
    assert said["refusal"]["error"] == "the run's epsilon is not what this phone's owner agreed to"
    phone.wait("Your phone refused a question: the run's epsilon is not what")


def test_a_question_that_is_none_is_refused_in_one_line(place):
    _, fleet, _, _, query = place(CONFIG)
    stranger = Query(1, query.indices, 10, "ab" * 32)
    assert "the server's transfer set is abababab" in ask(fleet, stranger)["refusal"]["error"]
    name = fleet.ask(b"", records={"train": {"weights": b"0"}}, kind="train.weights")
    said = records_of(fleet.wait_for_answers(2, timeout=60)[name])
    assert "got train.weights" in said["refusal"]["error"]
