"""The round loop on a network of our own making, where everything that can go wrong does."""

import errno
import itertools

import numpy as np
import pytest

from fedkd import collect
from fedkd.codec import decode_query, encode_release, peek, remember, remember_feedback
from fedkd.collect import Reply
from fedkd.config import Config
from fedkd.dataset import fingerprint
from fedkd.errors import CheckpointError, CodecError, ConfigError, QuorumError
from fedkd.records import Release, TransferSet
from fedkd.release import prepare
from fedkd.rounds import Evaluation, Loop
from fedkd.softlabels import one_hot

ROWS, CLASSES = 12, 3
INPUTS = np.linspace(0, 1, ROWS * 2, dtype=np.float32).reshape(ROWS, 2)
TRANSFER = TransferSet(INPUTS, fingerprint(INPUTS))
TRUTH = np.arange(ROWS) % CLASSES


class Student:
    """Remembers the mean of the teachers it saw: enough to see what it was taught."""

    architecture, parameters = "mean", 0

    def __init__(self):
        self.seen = np.zeros((ROWS, CLASSES), np.float32)
        self.lessons = 0

    def distill(self, x, p, *, w, rng):
        rows = [int(np.flatnonzero((row == INPUTS).all(axis=1))[0]) for row in x]
        self.seen = self.seen.copy()
        self.seen[rows] += p * np.float32(rng.uniform(0.9, 1.1))
        self.lessons += 1

    def predict(self, x):
        seen = self.seen[[int(np.flatnonzero((row == INPUTS).all(axis=1))[0]) for row in x]].reshape(-1, CLASSES)
        total = seen.sum(axis=1, keepdims=True)
        return np.where(total > 0, seen / np.maximum(total, 1e-9), np.float32(1 / CLASSES)).astype(np.float32)

    def state(self):
        return {"seen": self.seen, "lessons": np.array(self.lessons)}

    def load(self, state):
        self.seen, self.lessons = state["seen"], int(state["lessons"])


def truthful(query, client):
    """The ballot of an honest client: mostly right, a little different for each client and round."""
    p = 0.7 * one_hot(TRUTH[query.indices], CLASSES) + 0.1
    p[:, client % CLASSES] += 0.01 * query.round
    return Release((p / p.sum(axis=1, keepdims=True)).astype(np.float32), np.ones(len(p), np.float32))


class Network:
    """Clients by behavior: a function ``(query, client) -> Release, bytes, exception, or None for silence``."""

    def __init__(self, *behaviors, order=None, delays=()):
        self.behaviors, self.order, self.delays = behaviors, order, dict(delays)
        self.waiting, self.frames, self.personal, self.acknowledged = [], [], [], []

    def ask(self, round_, frame, personal, acknowledged):
        self.frames.append(frame)
        self.personal.append(personal)
        self.acknowledged.append(dict(acknowledged))
        for client in self.order or range(len(self.behaviors)):
            query = decode_query(personal.get(str(client), frame), TRANSFER.fingerprint, ROWS)
            try:
                made = self.behaviors[client](query, client)
            except RuntimeError as error:
                self.waiting.append((round_, Reply(round_, str(client), None, str(error), None, 9, 0.1, str(client))))
                continue
            for one in made if isinstance(made, list) else [made]:
                if one is not None:
                    sent = one if isinstance(one, bytes) else encode_release(one, query, client)
                    due = round_ + self.delays.get((client, round_), 0)
                    self.waiting.append((due, Reply(round_, str(client), sent, None, 0.5, len(sent), 0.1, str(client))))
        self.now = round_
        return {str(client): len(frame) for client in range(len(self.behaviors))}

    def open(self, round_):
        return sum(1 for _, reply in self.waiting if reply.round == round_) + sum(
            behavior is silent for behavior in self.behaviors
        )

    def poll(self, timeout):
        here = [reply for due, reply in self.waiting if due <= self.now]
        self.waiting = [(due, reply) for due, reply in self.waiting if due > self.now]
        if not here:
            CLOCK.forward(timeout)
        return here


def silent(query, client):
    return None


class FakeTime:
    """Time that passes only when the loop waits: a deadline is tested in no time at all."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def forward(self, seconds):
        self.now += seconds


CLOCK = FakeTime()


@pytest.fixture(autouse=True)
def _fake_time(monkeypatch):
    monkeypatch.setattr(collect, "time", CLOCK)


def settings(**keys):
    base = {
        "rounds": 2,
        "expertise": "uniform",
        "evidence": "none",
        "release": "float32",
        "broadcast": "float32",
        "deadline": 10.0,
        "grace": 10.0,
    }
    return Config(**{**base, **keys})


def loop(config=None, *, checkpoint=None, observe=lambda event, facts: None):
    evaluation = Evaluation((INPUTS, TRUTH), TRUTH)
    return Loop(
        config or settings(),
        TRANSFER,
        CLASSES,
        Student(),
        evaluation=evaluation,
        checkpoint=checkpoint,
        observe=observe,
    )


def without_time(reports):
    return [(r.round, r.metrics, r.clients) for r in reports]


def test_honest_clients_teach_the_student_the_truth():
    this = loop()
    reports = this.run(Network(truthful, truthful, truthful))
    assert [r.round for r in reports] == [1, 2]
    assert reports[-1].metrics["student"] == reports[-1].metrics["ensemble"] == 1.0
    assert this.student.lessons == 2


def test_the_teacher_of_a_round_goes_back_with_the_next_query_and_not_before():
    net = Network(truthful, truthful)
    loop().run(net)
    first, second = (decode_query(frame, TRANSFER.fingerprint, ROWS) for frame in net.frames)
    assert first.feedback is None
    assert second.feedback is not None
    assert (second.feedback.p.argmax(axis=1) == TRUTH).all()


def test_no_feedback_means_that_nothing_goes_back():
    net = Network(truthful, truthful)
    loop(settings(feedback="none")).run(net)
    assert decode_query(net.frames[1], TRANSFER.fingerprint, ROWS).feedback is None


def test_the_order_of_arrival_does_not_change_a_bit():
    results = {str(without_time(loop().run(Network(truthful, truthful, truthful, order=order)))) for order in
               itertools.permutations(range(3))}  # fmt: skip
    assert len(results) == 1


def test_a_client_that_raises_costs_only_itself():
    def broken(query, client):
        raise RuntimeError("out of memory")

    reports = loop().run(Network(truthful, broken, truthful))
    assert reports[0].clients["1"]["status"] == "failed"
    assert reports[0].clients["1"]["error"] == "out of memory"
    assert reports[0].metrics["answered"] == 2


def test_hostile_bytes_cost_only_their_sender():
    reports = loop().run(Network(truthful, lambda query, client: b"\x80\x04pickle", truthful))
    assert reports[0].clients["1"]["status"] == "failed"
    assert "frame" in reports[0].clients["1"]["error"]


def test_nan_in_soft_labels_is_refused_and_the_round_goes_on():
    def poisoned(query, client):
        release = truthful(query, client)
        release.p[0, 0] = np.nan
        return release

    reports = loop().run(Network(truthful, poisoned, truthful))
    assert "not distributions" in reports[0].clients["1"]["error"]
    assert reports[0].metrics["ensemble"] == 1.0


def test_unnormalized_soft_labels_are_refused():
    def logits(query, client):
        release = truthful(query, client)
        return Release(release.p * 3, release.w)

    assert loop().run(Network(truthful, logits))[0].clients["1"]["status"] == "failed"


def test_the_wrong_number_of_classes_is_refused():
    def other(query, client):
        wide = type(query)(query.round, query.indices, 4, query.fingerprint)
        return encode_release(Release(np.full((ROWS, 4), 0.25, np.float32), np.ones(ROWS, np.float32)), wide, client)

    assert "classes 4, expected 3" in loop().run(Network(truthful, other))[0].clients["1"]["error"]


def test_a_client_with_another_transfer_set_is_told_so():
    def stranger(query, client):
        other = type(query)(query.round, query.indices, CLASSES, "ab" * 32)
        return encode_release(truthful(query, client), other, client)

    assert "another transfer set" in loop().run(Network(truthful, stranger))[0].clients["1"]["error"]


def test_a_client_cannot_answer_in_the_name_of_another():
    def thief(query, client):
        return encode_release(truthful(query, client), query, 0)

    report = loop().run(Network(truthful, thief))[0]
    assert "in the name of client 0" in report.clients["1"]["error"]
    assert report.clients["0"]["status"] == "answered"


def test_a_second_answer_is_ignored():
    def twice(query, client):
        lie = Release(
            one_hot((TRUTH[query.indices] + 1) % CLASSES, CLASSES), np.full(len(query.indices), 9, np.float32)
        )
        return [truthful(query, client), lie]

    assert loop().run(Network(twice, truthful))[0].metrics["ensemble"] == 1.0


def test_a_silent_client_is_waited_for_until_the_deadline_and_no_longer():
    before = CLOCK.now
    reports = loop(settings(rounds=1)).run(Network(truthful, truthful, silent))
    assert CLOCK.now - before == pytest.approx(10)
    assert reports[0].clients["2"]["status"] == "silent"


def test_after_the_quorum_only_the_grace_is_waited():
    before = CLOCK.now
    loop(settings(rounds=1, quorum=0.5, grace=3.0)).run(Network(truthful, truthful, silent))
    assert CLOCK.now - before == pytest.approx(3)


def test_a_missed_quorum_stops_with_the_reasons_and_loses_nothing(tmp_path):
    failing = iter([False, False, True, True])

    def moody(query, client):
        if next(failing):
            raise RuntimeError("disk on fire")
        return truthful(query, client)

    this = loop(settings(rounds=3, quorum=0.9), checkpoint=tmp_path / "c.safetensors")
    this.step(net := Network(moody, moody))
    with pytest.raises(QuorumError, match=r"round 2: 0 of 2 clients answered.*2 needed.*disk on fire"):
        this.step(net)
    again = loop(settings(rounds=3, quorum=0.9, resume=True, output="x"), checkpoint=tmp_path / "c.safetensors")
    assert again.state.round == 1


def test_zero_answers_are_a_clear_error():
    with pytest.raises(QuorumError, match="0 of 2 clients answered"):
        loop().run(Network(silent, silent))


def test_a_late_answer_counts_in_the_next_round():
    def once(query, client):
        return truthful(query, client) if query.round == 1 else None

    net = Network(truthful, once, delays={(1, 1): 1})
    reports = loop(settings(rounds=2)).run(net)
    assert reports[0].clients["1"]["status"] == "silent"
    assert reports[1].clients["1"]["status"] == "late"


def test_a_late_answer_is_dropped_where_late_is_off_or_a_fresh_one_is_there():
    net = Network(truthful, truthful, delays={(1, 1): 1})
    reports = loop(settings(late=False)).run(net)
    assert reports[1].clients["1"]["status"] == "answered"
    net = Network(truthful, truthful, delays={(1, 1): 1})
    assert without_time(loop(settings(late=True)).run(net))[1] == without_time(reports)[1]


def test_a_late_answer_only_counts_on_the_rows_it_knows():
    release = Release(np.eye(3, dtype=np.float32), np.ones(3, np.float32))
    moved = collect.onto(np.array([1, 4, 5]), np.array([0, 4, 7]), release)
    assert moved.w.tolist() == [0, 1, 0]
    assert moved.p[1].tolist() == [0, 1, 0]


def test_stop_and_resume_equals_no_stop_bit_for_bit(tmp_path):
    path = tmp_path / "c.safetensors"
    whole = loop(settings(rounds=5))
    expected = without_time(whole.run(Network(truthful, truthful, truthful)))

    first = loop(settings(rounds=2), checkpoint=path)
    first.run(Network(truthful, truthful, truthful))
    second = loop(settings(rounds=5, resume=True, output="x"), checkpoint=path)
    assert without_time(second.run(Network(truthful, truthful, truthful))) == expected
    assert second.student.seen.tobytes() == whole.student.seen.tobytes()


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    loop(settings(rounds=1), checkpoint=path).run(Network(truthful, truthful))
    with pytest.raises(CheckpointError, match="another configuration"):
        loop(settings(seed=1, resume=True, output="x"), checkpoint=path)


def test_a_corrupt_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    loop(settings(rounds=1), checkpoint=path).run(Network(truthful, truthful))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="damaged"):
        loop(settings(resume=True, output="x"), checkpoint=path)


def test_a_full_disk_keeps_the_last_checkpoint_and_the_state_of_the_round_before(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    this = loop(settings(rounds=3), checkpoint=path)
    net = Network(truthful, truthful)
    this.step(net)
    kept, saved = this.student.seen.copy(), path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedkd.files.os.fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left.*checkpoint of round 1 is whole.*fedkd resume"):
        this.step(net)
    assert path.read_bytes() == saved
    assert list(tmp_path.iterdir()) == [path]
    assert this.state.round == 1
    assert (this.student.seen == kept).all()


def test_only_the_asked_rows_are_taught():
    this = loop(settings(rounds=1, select="uniform(size=5)"))
    this.run(Network(truthful, truthful))
    assert (this.student.seen.sum(axis=1) > 0).sum() == 5
    assert this.state.memory.asked.sum() == 5


def test_bytes_are_those_of_the_frames():
    net = Network(truthful, truthful)
    report = loop(settings(rounds=1)).run(net)[0]
    assert report.metrics["bytes_down"] == 2 * len(net.frames[0])
    (size,) = {row["bytes_up"] for row in report.clients.values()}
    assert ROWS * CLASSES * 4 < size < ROWS * CLASSES * 4 + 40


@pytest.mark.parametrize("share", [0.07, 0.14, 0.55])
def test_a_quorum_is_not_missed_by_a_rounding_error(share):
    have = round(share * 100)
    loop(settings(rounds=1, quorum=share)).run(Network(*[truthful] * have, *[broken] * (100 - have)))


def broken(query, client):
    raise RuntimeError("no")


def test_the_bytes_of_a_late_answer_are_counted_in_the_round_that_got_them():
    def once(query, client):
        return truthful(query, client) if query.round == 1 else None

    reports = loop(settings(rounds=2)).run(Network(truthful, once, delays={(1, 1): 1}))
    assert reports[0].clients["1"]["bytes_up"] == 0
    assert reports[1].clients["1"]["bytes_up"] == reports[0].clients["0"]["bytes_up"]


def test_a_run_that_stopped_before_its_first_checkpoint_resumes_from_the_start(tmp_path):
    this = loop(settings(rounds=1, resume=True, output="x"), checkpoint=tmp_path / "none.safetensors")
    assert this.run(Network(truthful, truthful))[0].round == 1


def test_a_student_that_forgets_cannot_be_resumed_and_says_how_to_mend_it(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    monkeypatch.setattr(Student, "state", lambda self: {})
    monkeypatch.setattr(Student, "load", lambda self, state: None)
    loop(settings(rounds=1), checkpoint=path).run(Network(truthful, truthful))
    with pytest.raises(CheckpointError, match=r"keeps no state: give it state\(\) and load\(\)"):
        loop(settings(resume=True, output="x"), checkpoint=path)


# Personal teachers, caches, public labels, class-keyed ballots.


def test_personal_teachers_travel_each_to_its_own_client():
    net = Network(truthful, truthful, truthful)
    loop(settings(feedback="others")).run(net)
    assert net.personal[0] == {}
    assert sorted(net.personal[1]) == ["0", "1", "2"]
    back = {name: decode_query(frame, TRANSFER.fingerprint, ROWS).feedback for name, frame in net.personal[1].items()}
    # Client 1 favors class 1 a little; only client 1 itself does not hear of it.
    row = int(np.flatnonzero(TRUTH == 0)[0])
    assert back["1"].p[row, 1] < back["0"].p[row, 1]


@pytest.mark.parametrize("feedback", ["teacher", "others", "clusters", "personal"])
def test_a_resumed_run_sends_back_what_the_uninterrupted_one_would_have(feedback, tmp_path):
    whole, first, second = (Network(truthful, truthful, truthful) for _ in range(3))
    loop(settings(rounds=3, feedback=feedback)).run(whole)
    path = tmp_path / "checkpoint.safetensors"
    loop(settings(rounds=2, feedback=feedback), checkpoint=path).run(first)
    config = settings(rounds=3, feedback=feedback, output=str(tmp_path), resume=True)
    loop(config, checkpoint=path).run(second)
    assert second.frames == whole.frames[2:]
    assert second.personal == whole.personal[2:]


def test_cached_rows_are_not_asked_again_and_still_taught():
    net = Network(truthful, truthful)
    this = loop(settings(rounds=4, select="cache_miss(size=6, duration=50)"))
    this.run(net)
    asked = [decode_query(frame, TRANSFER.fingerprint, ROWS).indices for frame in net.frames]
    assert sum(map(len, asked)) == len(np.unique(np.concatenate(asked))), "no row was bought twice"
    assert len(asked[0]) == 6 > len(asked[3])
    assert (this.student.seen.sum(axis=1) > 1.5).any(), "some row was taught more than once"
    assert len(this.state.teacher.indices) == 6


def test_a_round_that_finds_everything_in_the_cache_asks_nothing_and_goes_on():
    reports = loop(settings(rounds=2, select=f"cache_miss(size={ROWS}, duration=50)")).run(Network(truthful, truthful))
    assert reports[1].metrics["coverage"] is None
    assert reports[1].metrics["ensemble"] == 1.0


def test_replay_teaches_the_rows_of_earlier_rounds_too():
    plain, replayed = (
        loop(settings(rounds=3, select="budget(size=4)")),
        loop(settings(rounds=3, select="budget(size=4)", replay=3)),
    )
    plain.run(Network(truthful, truthful))
    replayed.run(Network(truthful, truthful))
    assert len(plain.state.teacher.indices) == 4
    assert len(replayed.state.teacher.indices) == 12


def labeled(config):
    return Loop(
        config, TRANSFER, CLASSES, Student(), evaluation=Evaluation((INPUTS, TRUTH), TRUTH), public_labels=TRUTH
    )


def test_with_public_labels_a_liar_is_not_heard_and_only_wrong_rows_are_asked():
    def liar(query, client):
        honest = truthful(query, client)
        return Release(np.roll(honest.p, 1, axis=1), honest.w)

    config = settings(rounds=2, labels="gems(mix=0.5)", select=f"wrong(size={ROWS})", feedback="student")
    this = labeled(config)
    net = Network(liar, liar, truthful)
    reports = this.run(net)
    assert reports[0].metrics["ensemble"] == reports[0].metrics["student"] == 1.0
    untaught = np.full((ROWS, CLASSES), 1 / CLASSES).argmax(axis=1) != TRUTH
    assert decode_query(net.frames[0], TRANSFER.fingerprint, ROWS).indices.tolist() == np.flatnonzero(untaught).tolist()
    assert len(decode_query(net.frames[1], TRANSFER.fingerprint, ROWS).indices) == 0


def test_public_labels_that_are_not_there_are_missed_before_the_first_round():
    with pytest.raises(ConfigError, match="needs a transfer set with labels"):
        loop(settings(labels="gems"))


def test_class_keyed_ballots_have_a_row_for_each_class_and_need_no_student():
    def means(query, client):
        p = 0.7 * np.eye(CLASSES, dtype=np.float32)[query.indices] + 0.1
        w = np.ones(CLASSES, np.float32)
        w[client % CLASSES] = 0
        return Release(p.astype(np.float32), w)

    class Classes(Network):
        def ask(self, round_, frame, personal, acknowledged):
            self.frames.append(frame)
            self.personal.append(personal)
            query = decode_query(frame, TRANSFER.fingerprint, CLASSES)
            for client, behavior in enumerate(self.behaviors):
                sent = encode_release(behavior(query, client), query, client)
                self.waiting.append((0, Reply(round_, str(client), sent, None, 0.5, len(sent), 0.1, str(client))))
            self.now = round_
            return {str(client): len(frame) for client in range(len(self.behaviors))}

    net = Classes(means, means, means)
    config = settings(keys="classes", student="none", feedback="others")
    reports = Loop(config, TRANSFER, CLASSES, None).run(net)
    assert reports[0].metrics["coverage"] == 1.0
    back = decode_query(net.personal[1]["0"], TRANSFER.fingerprint, CLASSES).feedback
    assert back.indices.tolist() == [0, 1, 2]
    assert back.p[1] == pytest.approx([0.1, 0.8, 0.1], abs=1e-6)


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


# Liars.


def liar(query, client):
    """The ballot of one who is sure that it is the next class."""
    p = one_hot((TRUTH[query.indices] + 1) % CLASSES, CLASSES)
    return Release(p.astype(np.float32), np.ones(len(p), np.float32))


def test_who_stands_apart_from_the_teacher_is_in_the_report():
    (report, _) = loop().run(Network(truthful, truthful, liar, truthful))
    far = {name: row["outlier"] for name, row in report.clients.items()}
    assert max(far, key=far.get) == "2" and far["2"] > 2 * far["0"]
    assert "trust" not in report.clients["2"], "nobody judged"


def test_a_defense_hears_liars_less_from_round_to_round_and_says_so():
    plain, guarded = (
        loop(settings(rounds=4, defend=defend)).run(Network(truthful, truthful, truthful, liar, liar))
        for defend in ("none", "exp_guard(eta=2.0)")
    )
    trust = [report.clients["4"]["trust"] for report in guarded]
    assert all(now < before for before, now in itertools.pairwise(trust))
    assert guarded[-1].clients["0"]["trust"] > 0.999 > 0.2 > trust[-1]
    assert guarded[-1].metrics["teacher_nll"] < guarded[0].metrics["teacher_nll"] < plain[-1].metrics["teacher_nll"]


def test_trust_survives_a_restart(tmp_path):
    config = settings(rounds=3, defend="exp_guard(eta=2.0)")
    crowd = (truthful, truthful, liar)
    whole = loop(config).run(Network(*crowd))
    path = tmp_path / "checkpoint.safetensors"
    loop(config.model_copy(update={"rounds": 2}), checkpoint=path).run(Network(*crowd))
    resumed = loop(config.model_copy(update={"output": str(tmp_path), "resume": True}), checkpoint=path)
    assert resumed.state.trust[2] < 0.5
    assert without_time(resumed.run(Network(*crowd))) == without_time(whole)


def test_an_absent_client_keeps_the_trust_that_it_had():
    def sometimes(query, client):
        return liar(query, client) if query.round == 1 else None

    this = loop(settings(rounds=3, defend="exp_guard(eta=2.0)"))
    this.run(Network(truthful, truthful, sometimes))
    assert this.state.trust[2] == this.state.reports[0].clients["2"]["trust"] < 0.5


# What the student makes of the teacher.


def test_the_student_may_teach_itself_rows_that_were_not_asked():
    class Sure(Student):
        def predict(self, x):
            known = super().predict(x)
            guess = one_hot(np.full(len(known), 2), CLASSES)
            return np.where(known.max(axis=1, keepdims=True) > 0.5, known, guess).astype(np.float32)

    config = settings(rounds=2, select="budget(size=4)", lesson="self_train(share=1.0)")
    this = Loop(config, TRANSFER, CLASSES, Sure(), evaluation=Evaluation((INPUTS, TRUTH), TRUTH))
    net = Network(truthful, truthful)
    this.step(net)
    assert (this.student.seen.sum(axis=1) > 0).sum() == 4, "in the first round it knows nothing to teach itself"
    this.step(net)
    assert (this.student.seen.sum(axis=1) > 0).all()
    assert len(this.state.teacher.indices) == 4 and len(this.state.lesson.indices) == ROWS


class Refits(Student):
    """Learns each lesson anew and keeps no state, as a forest does."""

    refits = True

    def distill(self, x, p, *, w, rng):
        if len(x):
            self.seen = np.zeros((ROWS, CLASSES), np.float32)
            super().distill(x, p * w[:, None], w=w, rng=rng)

    def state(self):
        return {}

    def load(self, state):
        pass


def test_a_self_taught_student_that_keeps_nothing_resumes_with_the_same_lesson(tmp_path):
    def run(rounds_, **keys):
        config = settings(rounds=rounds_, select="budget(size=4)", lesson="self_train(share=0.5) | confidence", **keys)
        path = tmp_path / "checkpoint.safetensors"
        this = Loop(config, TRANSFER, CLASSES, Refits(), evaluation=Evaluation((INPUTS, TRUTH), TRUTH), checkpoint=path)
        this.run(Network(truthful, truthful))
        return this

    whole = run(3)
    run(2)
    resumed = run(3, output=str(tmp_path), resume=True)
    assert (resumed.student.seen == whole.student.seen).all()
    assert without_time(resumed.state.reports) == without_time(whole.state.reports)


def test_a_round_that_teaches_nothing_leaves_the_lesson_before_for_a_student_that_keeps_nothing(tmp_path):
    def vague(query, client):
        flat = np.full((len(query.indices), CLASSES), np.float32(1 / CLASSES))
        return truthful(query, client) if query.round == 1 else Release(flat, np.ones(len(flat), np.float32))

    def run(rounds_, **keys):
        config = settings(rounds=rounds_, select="budget(size=4)", sharpen="gate(threshold=0.5)", **keys)
        path = tmp_path / "checkpoint.safetensors"
        this = Loop(config, TRANSFER, CLASSES, Refits(), evaluation=Evaluation((INPUTS, TRUTH), TRUTH), checkpoint=path)
        this.run(Network(vague, vague))
        return this

    whole = run(2)
    assert whole.state.taught == 1 and whole.student.seen.any()
    resumed = run(3, output=str(tmp_path), resume=True)
    assert (resumed.student.seen == whole.student.seen).all()
