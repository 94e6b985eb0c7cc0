"""What server and clients remember of each other between rounds: acknowledgements, deltas, and who is told what."""

import numpy as np
import pytest
from rounds_scene import CLASSES, CLOCK, ROWS, TRANSFER, Network, loop, settings, truthful, without_time

from fedkd import collect
from fedkd.codec import decode_query, encode_release, peek, remember, remember_feedback
from fedkd.collect import Reply
from fedkd.errors import CodecError
from fedkd.release import prepare


@pytest.fixture(autouse=True)
def _fake_time(monkeypatch):
    monkeypatch.setattr(collect, "time", CLOCK)


# Deltas against what the server has acknowledged.

DELTA = {"release": "argmax | delta | range_code", "broadcast": "argmax"}


def coded(query, client, known):
    """An honest client that sends deltas."""
    release = prepare(DELTA["release"], truthful(query, client), np.random.default_rng(0))
    return encode_release(release, query, client, known=known), release


class Remembering(Network):
    """Clients that keep what they sent, as ``fedkd.client`` does; ``lost`` are (client, round) that never arrive."""

    def __init__(self, clients, lost=()):
        super().__init__(*[truthful] * clients)
        self.lost, self.sent, self.sizes = set(lost), {}, []

    def ask(self, round_, frame, personal, acknowledged):
        self.acknowledged.append(dict(acknowledged))
        self.now = round_
        for client in range(len(self.behaviors)):
            query = decode_query(personal.get(str(client), frame), TRANSFER.fingerprint, ROWS)
            base = acknowledged.get(str(client), 0)
            known = next((k for k in self.sent.get(client, []) if k.round == base), None)
            reply, release = coded(query, client, known)
            self.sent[client] = [k for k in [known, remember(known, release, query, ROWS)] if k is not None]
            self.sizes.append((round_, client, len(reply)))
            if (client, round_) not in self.lost:
                self.waiting.append(
                    (round_, Reply(round_, str(client), reply, None, 0.5, len(reply), 0.1, str(client)))
                )
        return {str(client): len(frame) for client in range(len(self.behaviors))}


def test_the_server_acknowledges_the_last_release_that_it_has():
    net = Remembering(3, lost=[(1, 2)])
    reports = loop(settings(rounds=4, deadline=1.0, grace=1.0, **DELTA)).run(net)
    assert net.acknowledged == [{}, {"0": 1, "1": 1, "2": 1}, {"0": 2, "1": 1, "2": 2}, {"0": 3, "1": 3, "2": 3}]
    assert [r.metrics["answered"] for r in reports] == [3, 2, 3, 3]
    assert reports[-1].metrics["ensemble"] == 1.0


def test_a_client_that_forgot_sends_all_and_is_understood():
    net = Remembering(2)
    this = loop(settings(rounds=3, **DELTA))
    this.step(net)
    net.sent = {}
    report = this.step(net)
    assert report.metrics["answered"] == 2
    assert report.metrics["ensemble"] == 1.0


def test_a_client_that_forgot_sends_deltas_again_as_one_that_is_new():
    net = Remembering(2)
    this = loop(settings(rounds=4, select="budget(size=6)", **DELTA))
    this.step(net)
    net.sent = {}  # rows of round 1 that are not asked in round 2, and for how long they were the same
    reports = this.run(net)
    assert [r.metrics["answered"] for r in reports] == [2] * 4, [r.clients for r in reports]


def test_a_delta_from_a_release_that_the_server_never_had_costs_its_client_one_round():
    class Ahead(Remembering):
        def ask(self, round_, frame, personal, acknowledged):
            return super().ask(
                round_, frame, personal, {**acknowledged, "0": round_ - 1} if round_ == 3 else acknowledged
            )

    net = Ahead(3, lost=[(0, 2)])
    reports = loop(settings(rounds=4, deadline=1.0, grace=1.0, **DELTA)).run(net)
    assert reports[2].clients["0"]["status"] == "failed"
    assert "needs the release of round 2" in reports[2].clients["0"]["error"]
    assert reports[3].clients["0"]["status"] == "answered"


def test_a_resumed_server_knows_what_it_had_acknowledged(tmp_path):
    whole, first = Remembering(2), Remembering(2)
    loop(settings(rounds=3, **DELTA)).run(whole)
    path = tmp_path / "checkpoint.safetensors"
    loop(settings(rounds=2, **DELTA), checkpoint=path).run(first)
    this = loop(settings(rounds=3, output=str(tmp_path), resume=True, **DELTA), checkpoint=path)
    this.run(first)
    assert first.acknowledged == whole.acknowledged
    assert first.sizes == whole.sizes


# Feedback on top of what a client is known to have.

CACHE = {"select": f"cache_miss(size={ROWS}, duration=50)", "broadcast": "float32 | delta"}
"""All rows are bought in round 1, so from round 2 on the same teacher goes back."""


class Reading(Network):
    """Clients that keep what they were told; ``lost`` (client, round) forget it, ``away`` get no query."""

    def __init__(self, *behaviors, lost=(), away=(), **more):
        super().__init__(*behaviors, **more)
        self.lost, self.away, self.known, self.got, self.asked_again = set(lost), set(away), {}, {}, []

    def ask(self, round_, frame, personal, acknowledged):
        self.frames.append(frame)
        self.personal.append(personal)
        self.now = round_
        here = [k for k in range(len(self.behaviors)) if (k, round_) not in self.away]
        for client in here:
            if (client, round_) in self.lost:
                self.known.pop(client, None)
        return {str(k): self.hand(round_, k, personal.get(str(k), frame)) for k in here}

    def again(self, round_, client, frame, acknowledged):
        self.asked_again.append((round_, client))
        return self.hand(round_, int(client), frame)

    def hand(self, round_, client, frame):
        name, error, sent = str(client), None, None
        try:
            query = decode_query(frame, TRANSFER.fingerprint, ROWS, known=self.known.get(client))
            self.got[round_, client] = query.feedback
            release = self.behaviors[client](query, client)
            self.known[client] = remember_feedback(self.known.get(client), query, "float32", ROWS)
            if release is not None:
                sent = encode_release(release, query, client)
        except (CodecError, RuntimeError) as failure:
            error = str(failure)
        if sent is not None or error is not None:
            due = round_ + self.delays.get((client, round_), 0)
            self.waiting.append((due, Reply(round_, name, sent, error, 0.5, len(sent or b""), 0.1, name)))
        return len(frame)


def stubborn(query, client):
    """The same ballot in each round."""
    return truthful(type(query)(1, query.indices, CLASSES, query.fingerprint), client)


def all_as_in(net, frames):
    """Whether all that was decoded is what the frames without deltas say."""
    whole = [decode_query(frame, TRANSFER.fingerprint, ROWS).feedback for frame in frames]
    assert all(peek(frame).flags & 1 == 0 for frame in frames)
    return all(
        back.p.tobytes() == whole[round_ - 1].p.tobytes()
        and back.indices.tolist() == whole[round_ - 1].indices.tolist()
        for (round_, _), back in net.got.items()
        if back is not None
    )


def test_clients_that_are_up_to_date_share_one_short_frame_and_a_stranger_gets_all():
    net = Reading(truthful, truthful, truthful, away=[(2, 1), (2, 2)])
    loop(settings(rounds=4, **CACHE)).run(net)
    assert net.personal[:2] == [{}, {}]  # nobody is known to have anything
    assert sorted(net.personal[2]) == ["0", "1"] and sorted(net.personal[3]) == ["0", "1", "2"]
    assert net.personal[2]["0"] is net.personal[2]["1"]
    assert len(net.frames[2]) - len(net.personal[2]["0"]) == ROWS * CLASSES * 4 - 6
    assert net.asked_again == [] and all_as_in(net, net.frames)
    assert (2, 3) not in net.away and net.got[3, 2] is not None


def test_a_client_that_forgot_is_sent_all_in_the_same_round():
    net = Reading(truthful, truthful, lost=[(1, 3)])
    reports = loop(settings(rounds=4, **CACHE)).run(net)
    assert net.asked_again == [(3, "1")]
    assert [row["status"] for row in reports[2].clients.values()] == ["answered", "answered"]
    assert reports[2].clients["1"]["bytes_down"] == len(net.personal[2]["1"]) + len(net.frames[2])
    assert reports[2].metrics["bytes_multicast"] == sum(map(len, set(net.personal[2].values())))
    assert net.personal[3]["0"] is net.personal[3]["1"]
    assert all_as_in(net, net.frames)


def test_nobody_is_asked_twice_again_or_for_another_reason():
    def forgetful(query, client):
        raise RuntimeError("send it in full" if query.round == 3 else "out of memory")

    def fails(query, client):
        return truthful(query, client) if query.round < 3 else forgetful(query, client)

    net = Reading(truthful, fails)
    reports = loop(settings(rounds=4, quorum=0.5, **CACHE)).run(net)
    assert net.asked_again == [(3, "1")]
    assert reports[2].clients["1"]["status"] == "failed"
    assert "1" not in net.personal[3]  # whoever fails gets all the next time


def test_a_client_that_only_fails_late_gets_all_too():
    def fails(query, client):
        if query.round < 3:
            return truthful(query, client)
        raise RuntimeError("disk full")

    net = Reading(truthful, fails, delays={(1, 3): 1})
    loop(settings(rounds=5, quorum=0.5, grace=1.0, **CACHE)).run(net)
    assert "1" in net.personal[3] and "1" not in net.personal[4]


def test_a_late_answer_proves_what_its_sender_has():
    net = Reading(truthful, truthful, delays={(1, 2): 1})
    loop(settings(rounds=4, quorum=0.5, grace=1.0, **CACHE)).run(net)
    assert sorted(net.personal[2]) == ["0"] and sorted(net.personal[3]) == ["0", "1"]
    assert all_as_in(net, net.frames)


@pytest.mark.parametrize("feedback", ["teacher", "others"])
def test_a_resumed_server_knows_what_its_clients_have(feedback, tmp_path):
    keys = {"broadcast": "float32 | delta", "feedback": feedback}
    whole, parted = (Reading(stubborn, stubborn, stubborn, away=[(1, 3)]) for _ in range(2))
    expected = without_time(loop(settings(rounds=5, **keys)).run(whole))
    path = tmp_path / "checkpoint.safetensors"
    loop(settings(rounds=3, **keys), checkpoint=path).run(parted)
    config = settings(rounds=5, output=str(tmp_path), resume=True, **keys)
    assert without_time(loop(config, checkpoint=path).run(parted)) == expected
    assert (parted.frames, parted.personal) == (whole.frames, whole.personal)
    assert [peek(frame).base for _, frame in sorted(whole.personal[2].items())] == [2, 2, 2]
    assert whole.asked_again == []


def test_personal_teachers_each_have_a_memory_of_their_own():
    net, full = Reading(stubborn, stubborn, stubborn, lost=[(2, 3)]), Network(stubborn, stubborn, stubborn)
    keys = {"feedback": "others", "rounds": 4}
    reports = loop(settings(broadcast="float32 | delta", **keys)).run(net)
    loop(settings(**keys)).run(full)
    for round_ in (2, 3, 4):
        for name, frame in full.personal[round_ - 1].items():
            expected = decode_query(frame, TRANSFER.fingerprint, ROWS).feedback.p
            assert net.got[round_, int(name)].p.tobytes() == expected.tobytes()
            assert peek(net.personal[round_ - 1][name]).flags & 1 == (round_ > 2)
    assert net.asked_again == [(3, "2")]
    assert reports[2].metrics["answered"] == 3


def test_without_delta_nothing_is_remembered():
    this = loop(settings(rounds=3, broadcast="float32"))
    this.run(Network(truthful, truthful))
    assert this.state.told == {}
