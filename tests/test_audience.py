"""Deltas on the way down: whoever was absent, late or lost its memory decodes what a full frame would have said."""

import functools
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.audience import EVERYONE, MOST_FRAMES, Audience
from fedkd.codec import IN_FULL, decode_query, encode_query, remember_feedback
from fedkd.errors import CodecError
from fedkd.frames import DELTA, peek
from fedkd.records import Query, Release, Teacher
from fedkd.release import prepare
from fedkd.softlabels import one_hot
from simulations import scene

SHA = hashlib.sha256(b"ours").hexdigest()
ROWS, CLASSES = 12, 3
CHAINS = ["float32 | delta", "argmax | delta", "argmax | delta | range_code", "quantize(bits=3) | delta | range_code"]
CHAINS += ["top_k(k=2) | delta", "quantize(bits=2) | delta"]


def asked(round_, labels, rows=None):
    """A query whose feedback names classes, on all rows or some."""
    rows = np.arange(len(labels)) if rows is None else np.asarray(rows)
    return Query(round_, np.arange(2), CLASSES, SHA, Teacher(one_hot(np.asarray(labels), CLASSES), rows))


def frames_of(audience, query):
    whole = encode_query(query, ROWS, "float32")
    return audience.frames(query, "float32", {"delta"}, whole), whole


def rows_of(bits):
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), count=ROWS)).tolist()


# By hand: twelve rows, three classes.


def test_who_answered_has_what_was_told_and_a_row_that_changes_is_had_by_nobody():
    first = asked(2, [0, 1, 2], [3, 5, 8])
    audience = Audience().tell(first, "float32", ROWS).hear([1, 4], first)
    assert {key: rows_of(bits) for key, bits in audience.has.items()} == {1: [3, 5, 8], 4: [3, 5, 8]}
    second = asked(3, [1, 0, 0], [5, 8, 11])  # 5 stays, 8 changes, 11 is new
    audience = audience.tell(second, "float32", ROWS).hear([4], second)
    assert {key: rows_of(bits) for key, bits in audience.has.items()} == {1: [3, 5], 4: [3, 5, 8, 11]}
    assert audience.heard == {1: 2, 4: 3}
    assert rows_of(audience.forget([4]).has[1]) == [3, 5] and 4 not in audience.forget([4]).heard


def test_a_late_answer_proves_only_what_is_still_true():
    first, second = asked(2, [0, 0], [1, 2]), asked(3, [1], [2])
    audience = Audience().tell(first, "float32", ROWS).tell(second, "float32", ROWS).hear([7], first)
    assert rows_of(audience.has[7]) == [1]
    assert audience.heard[7] == 2


def test_a_label_that_comes_back_is_told_again_since_who_missed_the_answer_may_have_the_other():
    queries = [asked(2, [0]), asked(3, [1]), asked(4, [0])]
    audience = Audience().tell(queries[0], "float32", ROWS).hear([1], queries[0])
    for query in queries[1:]:
        audience = audience.tell(query, "float32", ROWS)  # and nobody is heard
    assert rows_of(audience.has[1]) == []


def test_clients_with_the_same_rows_share_one_frame_and_an_absentee_gets_its_own():
    first, second, third = (asked(r, [r % 3, *[0] * 11]) for r in (2, 3, 4))
    audience = Audience().tell(first, "float32", ROWS).hear([1, 2, 3], first)
    audience = audience.tell(second, "float32", ROWS).hear([1, 2], second)
    frames, whole = frames_of(audience, third)
    assert frames[1] is frames[2]
    assert len(whole) - len(frames[1]) == 11 * 12 - (1 + 3 + 4)  # the base, a bitmap of twelve, a checksum
    assert (peek(frames[1]).base, peek(frames[3]).base) == (3, 2)
    assert 9 not in frames
    # Client 3 misses rows that it needs not: then it reads the frame of the others.
    some = asked(4, [0] * 11, range(1, 12))
    frames, _ = frames_of(audience, some)
    assert frames[1] is frames[3]
    assert peek(frames[1]).base == 2


def test_what_is_not_shorter_goes_down_in_full():
    first = asked(2, [0] * 12)
    audience = Audience().tell(first, "label", ROWS).hear([1], first)
    again = asked(3, [1] * 11 + [0])
    assert audience.frames(again, "label", {"delta"}, encode_query(again, ROWS, "label")) == {}


def test_so_many_different_frames_and_no_more():
    audience, clients = Audience(), range(MOST_FRAMES + 20)
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(rng.random(ROWS) < 0.7) for _ in clients]
    for round_, (key, where) in enumerate(zip(clients, rows, strict=True), start=2):
        told = asked(round_, [0] * len(where), where)
        audience = audience.tell(told, "float32", ROWS).hear([key, 1000], told)
    frames, _ = frames_of(audience, asked(100, [0] * 12))
    assert len(set(frames.values())) <= MOST_FRAMES
    for key, where in enumerate(rows):
        if key in frames:
            told = asked(2 + key, [0] * len(where), where)
            known = remember_feedback(None, told, "float32", ROWS)
            assert (decode_query(frames[key], SHA, ROWS, known=known).feedback.p[:, 0] == 1).all()


def test_an_audience_survives_a_file():
    first, second = asked(2, [0, 1, 2], [3, 5, 8]), asked(3, [1], [5])
    audience = Audience().tell(first, "float32", ROWS).hear([1, 2**64 - 1, 3], first)
    audience = audience.tell(second, "float32", ROWS).hear([3, 9], second)
    again = Audience.from_arrays({name: array.copy() for name, array in audience.to_arrays().items()})
    assert (again.has, again.heard) == (audience.has, audience.heard)
    assert frames_of(again, asked(4, [0] * 12)) == frames_of(audience, asked(4, [0] * 12))
    empty = Audience().tell(first, "float32", ROWS)
    assert Audience.from_arrays(empty.to_arrays()).has == {}
    assert Audience().to_arrays() == {}


# Whatever happens, the decoded query is the one that was meant.


class Device:
    """A client's memory of feedback, as ``fedkd.client`` keeps it."""

    def __init__(self):
        self.known = None

    def read(self, frame, encoding):
        query = decode_query(frame, SHA, ROWS, classes=CLASSES, known=self.known)
        self.known = remember_feedback(self.known, query, encoding, ROWS)
        return query


FATES = ["answers", "answers", "answers", "absent", "answer lost", "late", "forgot"]


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(CHAINS),
    st.lists(st.lists(st.sampled_from(FATES), min_size=3, max_size=3), min_size=2, max_size=9),
    st.integers(0, 2**32 - 1),
)
def test_any_sequence_of_feedbacks_and_absences_decodes_to_what_full_frames_say(chain, fates, seed):
    rng = np.random.default_rng(seed)
    truth = rng.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
    devices, audience, late = [Device() for _ in range(3)], Audience(), []
    forgetful = set()
    for round_, fate in enumerate(fates, start=2):
        moved = rng.random(ROWS) < 0.3
        truth[moved] = rng.dirichlet(np.ones(CLASSES), int(moved.sum()))
        rows = np.flatnonzero(rng.random(ROWS) < 0.8)
        sent = prepare(chain, Release(truth[rows], np.ones(len(rows), np.float32)), np.random.default_rng(0))
        query = Query(round_, np.arange(1), CLASSES, SHA, Teacher(sent.p, rows))
        whole = encode_query(query, ROWS, sent.encoding, coding=sent.coding)
        assert not peek(whole).flags & DELTA
        frames = audience.frames(query, sent.encoding, sent.coding, whole)
        proofs, refused = [], set()
        for key, device in enumerate(devices):
            if fate[key] == "forgot":
                device.known = None
                forgetful.add(key)
            if fate[key] == "absent":
                continue
            frame = frames.get(key, whole)
            assert len(frame) <= len(whole)
            try:
                got = device.read(frame, sent.encoding)
            except CodecError as error:
                assert IN_FULL in str(error) and key in forgetful
                refused.add(key)
                got = device.read(whole, sent.encoding)
            assert got.feedback.indices.tolist() == rows.tolist()
            assert got.feedback.p.tobytes() == sent.p.tobytes()
            if fate[key] in ("answers", "forgot"):
                proofs.append(key)
        audience = audience.tell(query, sent.encoding, ROWS).forget(refused).hear(proofs, query)
        for key, before in late:
            if key not in refused:
                audience = audience.hear([key], before)
        late = [(key, query) for key in range(3) if fate[key] == "late"]


# Whole runs: the same answers to the byte, and fewer bytes.

SETTINGS = {
    "clients": 4, "rounds": 5, "transfer": "split(size=60)", "learner": "mlp(hidden=8)", "student": "mlp(hidden=8)",
    "local_epochs": 1, "distill_epochs": 1, "feedback_epochs": 1, "pooled": False, "quorum": 0.25, "grace": 0.01,
    "deadline": 0.5,
}  # fmt: skip


class Shaky(scene.Direct):
    """``absent`` (client, round) get no query; the answers of ``late`` ones come a round later; ``lost`` forget all."""

    def __init__(self, sites, config, present=scene.always, *, absent=(), late=(), lost=(), answers=None):
        super().__init__(sites, config, present)
        self.absent, self.late, self.lost = set(absent), set(late), set(lost)
        self.answers, self.held = answers, []

    def ask(self, round_, frame, personal, acknowledged):
        self.sites, everyone = [s for s in self.sites if (s.key, round_) not in self.absent], self.sites
        for site in self.sites:
            if (site.key, round_) in self.lost:
                site.state.unlink()
        self._replies, self.held = self.held, []
        sent = super().ask(round_, frame, personal, acknowledged)
        self.sites = everyone
        return sent

    def again(self, round_, client, frame, acknowledged):
        size = super().again(round_, client, frame, acknowledged)
        self.answers[round_, client] = self._replies[-1].frame
        if (int(client), round_) in self.late and self._replies[-1].frame is not None:
            self.held.append(self._replies.pop())
        return size


def run(monkeypatch, preset, broadcast, *, shaky, **keys):
    answers = {}
    monkeypatch.setattr(scene, "Direct", functools.partial(Shaky, answers=answers, **shaky))
    return scene.play(preset, **{**SETTINGS, "broadcast": broadcast, **keys}), answers


def without_bytes(reports):
    rows = [{k: {n: v for n, v in r.items() if "bytes" not in n} for k, r in x.clients.items()} for x in reports]
    return [{k: v for k, v in r.metrics.items() if "bytes" not in k} for r in reports], rows


@pytest.mark.parametrize(
    ("preset", "broadcast", "keys"),
    [
        ("scarlet", "float32", {"select": "cache_miss(size=30, duration=2)"}),
        ("scarlet", "float16", {"select": "cache_miss(size=30, duration=50)", "replay": 3}),
        ("cfd", "argmax | range_code", {}),
        ("expert", "quantize(bits=3) | range_code", {"release": "argmax | delta | range_code"}),
        ("comet", "quantize(bits=2)", {"late": False}),
        ("kt_pfl", "argmax", {"select": "fixed(size=40)"}),
        ("fd", "float16", {"student": "none", "transfer": "split(size=60)"}),
    ],
)
def test_a_run_with_deltas_is_the_run_without_but_for_the_bytes(preset, broadcast, keys, monkeypatch):
    shaky = {"absent": [(1, 2), (1, 3), (2, 4)], "late": [(3, 2), (0, 4)], "lost": [(2, 3), (0, 5)]}
    whole, said = run(monkeypatch, preset, broadcast, shaky=shaky, **keys)
    fewer, spoken = run(monkeypatch, preset, f"{broadcast} | delta", shaky=shaky, **keys)
    assert spoken == said
    assert without_bytes(fewer) == without_bytes(whole)
    assert {row["status"] for report in fewer for row in report.clients.values()} >= {"answered", "silent"}
    assert {row["status"] for row in fewer[-1].clients.values()} == {"answered"}
    share = sum(r.metrics["bytes_down"] for r in fewer) / sum(r.metrics["bytes_down"] for r in whole)
    assert share < (0.9 if preset == "scarlet" else 1.11)  # two that forgot are asked twice


def test_a_teacher_that_stays_in_the_cache_is_sent_once(monkeypatch):
    keys = {"select": "cache_miss(size=60, duration=50)", "rounds": 4}
    whole, fewer = (
        [r.metrics["bytes_down"] / 4 for r in run(monkeypatch, "scarlet", way, shaky={}, **keys)[0]]
        for way in ("float32", "float32 | delta")
    )
    assert fewer[:2] == whole[:2]  # nobody was told anything before round 2
    assert fewer[2] == fewer[3] == whole[2] - 60 * 40 + 1 + 1 + 4  # the base, all rows, their checksum


def test_who_lost_its_memory_is_sent_all_in_the_same_round_and_pays_for_both(monkeypatch):
    keys = {"select": "cache_miss(size=60, duration=50)", "rounds": 5}
    reports, _ = run(monkeypatch, "scarlet", "float32 | delta", shaky={"lost": [(2, 4)]}, **keys)
    down = [{name: row["bytes_down"] for name, row in r.clients.items()} for r in reports]
    assert reports[3].clients["2"]["status"] == "answered"
    assert down[3]["2"] == down[3]["0"] + down[1]["2"]
    assert down[4]["2"] == down[4]["0"] < 200


def test_an_absentee_gets_what_it_missed_and_nothing_else(monkeypatch):
    keys = {"select": "cache_miss(size=60, duration=1)", "rounds": 4}  # all rows expire in round 3
    reports, _ = run(monkeypatch, "scarlet", "float32 | delta", shaky={"absent": [(1, 2)]}, **keys)
    down = [{name: row["bytes_down"] for name, row in r.clients.items()} for r in reports]
    assert not down[1].get("1")
    assert down[2]["1"] > 60 * 40 > 20 * down[2]["0"] / 2


def test_everyone_is_no_client():
    assert EVERYONE < 0
