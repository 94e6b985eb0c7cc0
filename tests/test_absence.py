"""Clients that are away: their last ballots count for a while, and nobody's trust or bytes change by it."""

import numpy as np
import pytest
from rounds_scene import CLOCK, ROWS, TRUTH, Network, loop, settings, truthful, without_time

from fedkd import collect
from fedkd.absence import Kept, kept, of_the_absent, onto
from fedkd.files import load_arrays
from fedkd.records import Query, Release


@pytest.fixture(autouse=True)
def _fake_time(monkeypatch):
    monkeypatch.setattr(collect, "time", CLOCK)


def knows(classes, away=()):
    """A client that answers rows of ``classes`` only, and is silent in the rounds ``away``."""

    def behave(query, client):
        if query.round in away:
            return None
        release = truthful(query, client)
        return Release(release.p, np.isin(TRUTH[query.indices], classes).astype(np.float32))

    return behave


def test_what_only_an_absent_client_knows_is_still_taught():
    given = settings(rounds=2, remember=1, quorum=0.5)
    this = loop(given)
    this.run(Network(knows([0, 1]), knows([2], away=[2])))
    first, second = this.state.reports
    assert second.clients["1"]["status"] == "silent" and second.clients["1"]["bytes_up"] == 0
    assert first.metrics["ensemble"] == second.metrics["ensemble"] == 1.0
    forgetful = loop(settings(rounds=2, remember=0, quorum=0.5))
    forgetful.run(Network(knows([0, 1]), knows([2], away=[2])))
    assert forgetful.state.reports[1].metrics["coverage"] == pytest.approx(2 / 3)
    assert second.metrics["coverage"] == 1.0


def test_a_ballot_is_forgotten_after_as_many_rounds_as_are_set():
    given = settings(rounds=5, remember=2, quorum=0.5)
    this = loop(given)
    this.run(Network(knows([0, 1]), knows([2], away=[2, 3, 4, 5])))
    assert [report.metrics["coverage"] == 1.0 for report in this.state.reports] == [True, True, True, False, False]
    assert sorted(this.state.ballots) == [0]


def test_who_answers_nonsense_is_not_taken_at_its_earlier_word():
    def turns(query, client):
        if query.round == 1:
            return truthful(query, client)
        return Release(np.full((ROWS, 3), np.nan, np.float32), np.ones(ROWS, np.float32))

    this = loop(settings(rounds=2, remember=5, quorum=0.5))
    this.run(Network(truthful, turns))
    assert this.state.reports[1].clients["1"]["status"] == "failed"
    assert "outlier" not in this.state.reports[1].clients["1"]


def test_stop_and_resume_remember_the_same_ballots(tmp_path):
    clients = [knows([0, 1]), knows([2], away=[2, 3])]
    whole = loop(settings(rounds=3, remember=3, quorum=0.5))
    whole.run(Network(*clients))
    path = tmp_path / "checkpoint.safetensors"
    loop(settings(rounds=1, remember=3, quorum=0.5), checkpoint=path).run(Network(*clients))
    rest = loop(settings(rounds=3, remember=3, quorum=0.5, resume=True, output=str(tmp_path)), checkpoint=path)
    rest.run(Network(*clients))
    assert without_time(rest.state.reports) == without_time(whole.state.reports)


def test_where_the_server_may_not_hold_single_ballots_it_keeps_none():
    from fedkd.config import Config

    assert collect.remembers(Config()) and not collect.remembers(Config(remember=0))
    assert not collect.remembers(Config(preset="private_clients"))
    assert collect.remembers(Config(preset="private"))


@pytest.mark.parametrize("rounds", [0, 5])
def test_a_checkpoint_without_records_has_what_remember_keeps_and_says_so(rounds, tmp_path):
    from fedkd.config import Config

    given = settings(rounds=1, remember=rounds, record=False)
    path = tmp_path / "checkpoint.safetensors"
    loop(given, checkpoint=path).run(Network(truthful, truthful))
    kept_there = [name for name in load_arrays(path)[0] if name.startswith("ballot.")]
    assert bool(kept_there) is bool(rounds)
    assert "the last if remember > 0" in str(Config.model_fields["record"].description)


def test_the_newest_word_counts_and_old_ones_end_by_hand():
    old, new = (Kept(r, np.arange(2), Release(np.eye(2, dtype=np.float32), np.ones(2, np.float32))) for r in (1, 4))
    assert kept({0: old, 1: old}, 4, {1: new}, 3) == {1: new}
    assert kept({0: old, 1: old}, 4, {1: new}, 4) == {0: old, 1: new}
    query = Query(5, np.array([1, 3]), 2, "")
    (release,) = of_the_absent({0: old, 1: new}, query, {0}).values()
    assert release.w.tolist() == [0.5, 0] and release.p[0].tolist() == [0, 1]
    assert onto(query.indices, np.arange(0), old.release).w.tolist() == [0, 0]
