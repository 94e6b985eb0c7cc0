"""Rounds in which more than the newest teacher is taught: caches, replay, public labels, defenses, self-teaching."""

import itertools

import numpy as np
import pytest
from rounds_scene import (
    CLASSES,
    CLOCK,
    INPUTS,
    ROWS,
    TRANSFER,
    TRUTH,
    Network,
    Student,
    loop,
    settings,
    truthful,
    without_time,
)

from fedkd import collect
from fedkd.codec import decode_query, encode_release
from fedkd.collect import Reply
from fedkd.errors import ConfigError
from fedkd.records import Release
from fedkd.rounds import Evaluation, Loop
from fedkd.softlabels import one_hot


@pytest.fixture(autouse=True)
def _fake_time(monkeypatch):
    monkeypatch.setattr(collect, "time", CLOCK)


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
