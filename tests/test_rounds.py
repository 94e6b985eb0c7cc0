"""The round loop on a network of our own making, where everything that can go wrong does."""

import errno
import itertools

import numpy as np
import pytest
from rounds_scene import (
    CLASSES,
    CLOCK,
    ROWS,
    TRANSFER,
    TRUTH,
    Network,
    Student,
    loop,
    settings,
    silent,
    truthful,
    without_time,
)

from fedkd import collect
from fedkd.codec import decode_query, encode_release
from fedkd.errors import CheckpointError, QuorumError
from fedkd.records import Release
from fedkd.softlabels import one_hot


@pytest.fixture(autouse=True)
def _fake_time(monkeypatch):
    monkeypatch.setattr(collect, "time", CLOCK)


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
    assert report.metrics["bytes_multicast"] == len(net.frames[0])
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
