"""Frames: nothing is lost on the way, old bytes stay readable, and hostile ones raise one kind of error."""

import numpy as np
import pytest
from codec_scene import CHAINS, EXPERTISE, PLAIN, SHA, conversation, framed, query, release

from fedkd.codec import (
    IN_FULL,
    Known,
    decode_query,
    decode_release,
    encode_query,
    encode_release,
    remember,
    remember_feedback,
)
from fedkd.errors import CodecError
from fedkd.events import Gaussian, NonPrivate, NoOp, SampledGaussian
from fedkd.records import Query, Release, Teacher
from fedkd.release import prepare
from fedkd.symbols import label_bits

# What goes in comes out.


@pytest.mark.parametrize("classes", [2, 3, 10, 17])
@pytest.mark.parametrize("rows", [0, 1, 5, 64])
@pytest.mark.parametrize("chain", CHAINS)
def test_soft_labels_come_back_bit_for_bit(chain, rows, classes):
    sent = release(chain, rows, classes)
    client, got = decode_release(encode_release(sent, query(rows, classes), 2**64 - 1), query(rows, classes))
    assert client == 2**64 - 1
    assert got.p.dtype == np.float32
    assert got.p.tobytes() == sent.p.tobytes()
    assert got.encoding == sent.encoding


@pytest.mark.parametrize("chain", [*PLAIN, "argmax | range_code", "quantize(bits=8) | range_code"])
def test_a_thousand_classes_come_back_bit_for_bit(chain):
    sent = release(chain, 20, 1000)
    got = decode_release(encode_release(sent, query(20, 1000), 0), query(20, 1000))[1]
    assert (got.p == sent.p).all()


@pytest.mark.parametrize("w", [[1] * 5, [0] * 5, [0.25] * 5, [1, 0, 0.5, 1e-30, 3e38], [1e-45] * 5])
def test_weights_come_back_bit_for_bit(w):
    sent = release(w=w)
    got = decode_release(encode_release(sent, query(), 0), query())[1].w
    assert got.dtype == np.float32
    assert (got == sent.w).all()


@pytest.mark.parametrize("event", [NonPrivate(), NoOp(), Gaussian(3.7), SampledGaussian(0.1, 1.5, 20)])
def test_the_event_comes_back(event):
    sent = Release(release().p, np.ones(5, np.float32), event)
    assert decode_release(encode_release(sent, query(), 0), query())[1].event == event


def test_an_event_that_we_do_not_know_costs_everything():
    frame = framed(b"\xfe\x00" + release().p.tobytes())
    assert decode_release(frame, query())[1].event == NonPrivate()


def test_what_was_decoded_can_be_written_to():
    got = decode_release(encode_release(release(w=[0.5] * 5), query(), 0), query())[1]
    got.p[0, 0] = got.w[0] = 0.0


@pytest.mark.parametrize("indices", [[], [0], [10], [0, 3, 9], list(range(10)), list(range(11))])
def test_asked_rows_come_back(indices):
    asked = Query(4, np.array(indices, np.int64), 3, SHA)
    got = decode_query(encode_query(asked, 11), SHA, 11)
    assert got.indices.tolist() == indices
    assert (got.round, got.classes, got.fingerprint, got.feedback) == (4, 3, SHA, None)


@pytest.mark.parametrize("where", [[], [4], [0, 7, 10], list(range(11))])
@pytest.mark.parametrize("chain", CHAINS)
def test_feedback_comes_back_bit_for_bit(chain, where):
    sent = release(chain, len(where))
    asked = Query(1, np.array([1, 2]), 3, SHA, Teacher(sent.p, np.array(where, np.int64)))
    got = decode_query(encode_query(asked, 11, sent.encoding, coding=sent.coding), SHA, 11, classes=3)
    assert got.indices.tolist() == [1, 2]
    assert got.feedback.indices.tolist() == where
    assert got.feedback.p.tobytes() == sent.p.tobytes()


DELTAS = ["float16 | delta", "top_k(k=2) | delta", "argmax | delta", "quantize(bits=3) | delta", "argmax | range_code"]
DELTAS += ["argmax | delta | range_code", "quantize(bits=3) | delta | range_code"]


@pytest.mark.parametrize("taught", [True, False])
@pytest.mark.parametrize("chain", [*DELTAS, *(f"weights(bits=4) | {chain}" for chain in DELTAS)])
def test_a_release_on_top_of_another_comes_back_bit_for_bit(chain, taught):
    rng = np.random.default_rng(0)
    asked = [np.sort(rng.permutation(90)[:n]) for n in (40, 60, 0, 90, 90)]
    frames = [step[2] for step in conversation(chain, w=EXPERTISE, taught=taught, size=90, asked=asked, rounds=5)]
    flags = [frame[4] >> 4 for frame in frames]
    assert [flag & 1 for flag in flags] == [0] + [int("delta" in chain)] * 4
    assert [flag & 2 for flag in flags] == [2 * ("range_code" in chain)] * 5


def test_rows_that_were_never_sent_are_sent_in_full_and_the_others_stay_as_they_were():
    first = Query(1, np.array([0, 2]), 3, SHA)
    sent = Release(np.eye(3, dtype=np.float32)[[1, 2]], np.array([1, 2], np.float32), encoding="label")
    known = remember(None, sent, first, 4)
    assert known.seen.tolist() == [True, False, True, False]
    assert (known.symbols[known.seen].tolist(), known.w[known.seen].tolist()) == ([1, 2], [1, 2])
    again = Query(5, np.array([1, 2]), 3, SHA)
    later = remember(
        known, Release(np.eye(3, dtype=np.float32)[[0, 0]], np.ones(2, np.float32), encoding="label"), again, 4
    )
    assert later.round == 5
    assert later.symbols[:3].tolist() == [1, 0, 0]
    assert later.w[:3].tolist() == [1, 1, 1]
    assert later.age.tolist() == [3, 3, 0, 3]  # rows that never changed are as old as can be
    assert known.symbols.tolist() == [1, 0, 2, 0]  # and it was not written to


def test_what_is_remembered_survives_a_file():
    *_, (q, _, _, got) = conversation("quantize(bits=2) | delta", rows=20)
    known = remember(None, got, q, 20)
    again = Known.from_arrays({name: array.copy() for name, array in known.to_arrays().items()})
    assert (again.round, again.encoding) == (3, "grid2")
    for name in ("symbols", "age", "w", "seen"):
        assert (getattr(again, name) == getattr(known, name)).all()


def test_a_delta_without_its_base_says_which_round_it_needs():
    (q1, one, _, _), (q2, two, frame, _), _ = conversation("argmax | delta", rows=50)
    for known in (None, remember(remember(None, one, q1, 50), two, q2, 50)):
        with pytest.raises(CodecError, match="client 3: needs the release of round 1, which is not here"):
            decode_release(frame, q2, known=known)


@pytest.mark.parametrize("chain", ["argmax | delta", "argmax | delta | range_code"])
def test_two_ends_that_remember_different_things_do_not_misunderstand_each_other(chain):
    (q1, one, _, _), (q2, _, frame, _), _ = conversation(chain, rows=50, w=EXPERTISE[:50])
    ours = remember(None, one, q1, 50)
    for name in ("symbols", "w", "seen"):
        other = getattr(ours, name).copy()
        other[7] = 1 - other[7]
        with pytest.raises(CodecError, match="checksum does not match, or its sender remembers something else"):
            decode_release(frame, q2, known=Known(**{**vars(ours), name: other}))
    decode_release(frame, q2, known=ours)


def test_a_release_that_leans_on_a_teacher_needs_the_same_teacher():
    (q1, one, _, _), (q2, _, frame, _), _ = conversation("argmax | range_code", rows=50)
    other = q2.feedback.p.copy()
    other[0] = other[0, ::-1]
    for feedback in (None, Teacher(other, q2.feedback.indices)):
        with pytest.raises(CodecError):
            decode_release(frame, Query(2, q2.indices, 10, SHA, feedback))


def test_a_release_in_another_encoding_starts_anew():
    (q1, one, _, _), (q2, _, frame, _), _ = conversation("argmax | delta", rows=50)
    known = remember(None, prepare("float16", one, np.random.default_rng(0)), q1, 50)
    again = prepare("argmax | delta", one, np.random.default_rng(0))
    assert decode_release(encode_release(again, q2, 3, known=known), q2, known=known)[1].coding == frozenset()
    with pytest.raises(CodecError, match="a delta of encoding 2 cannot follow a release in float16"):
        decode_release(frame, q2, known=known)


def test_a_memory_of_fewer_rows_or_other_classes_is_refused():
    (q1, one, _, _), (q2, two, _, _), _ = conversation("quantize(bits=2) | delta", rows=50)
    known = remember(None, one, q1, 50)
    for wide in (Query(2, np.arange(60), 10, SHA), Query(2, np.arange(50), 11, SHA)):
        p = np.full((len(wide.indices), wide.classes), 1 / wide.classes, np.float32)
        sent = prepare("quantize(bits=2) | delta", Release(p, np.ones(len(p), np.float32)), np.random.default_rng(0))
        with pytest.raises(CodecError, match="was remembered for"):
            encode_release(sent, wide, 3, known=known)


# What a client was told before.


def told(chain="argmax | delta", *, rows=5, seed=3, round_=2, base=None):
    """A query with feedback on five of eleven rows, and what is remembered of it."""
    sent = release(chain, rows, seed=seed)
    asked = query(2, round_=round_, feedback=Teacher(sent.p, np.arange(rows) * 2))
    return asked, sent, remember_feedback(base, asked, sent.encoding, 11)


@pytest.mark.parametrize("chain", [chain + " | delta" for chain in PLAIN[:5]] + DELTAS[-2:])
def test_feedback_on_top_of_another_comes_back_bit_for_bit_and_what_stays_costs_next_to_nothing(chain):
    first, one, known = told(chain)
    second, two, _ = told(chain, round_=3)  # the same again
    frame = encode_query(second, 11, two.encoding, coding=two.coding, known=known)
    assert frame[4] >> 4 & 1
    assert decode_query(frame, SHA, 11, known=known).feedback.p.tobytes() == one.p.tobytes()
    assert len(frame) <= len(encode_query(second, 11, two.encoding)) - len(one.p) * label_bits(3) // 8 + 8
    third, three, _ = told(chain, round_=4, seed=4)
    frame = encode_query(third, 11, three.encoding, coding=three.coding, known=known)
    assert decode_query(frame, SHA, 11, known=known).feedback.p.tobytes() == three.p.tobytes()


def test_a_sign_of_zero_is_not_lost():
    p = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    first = Query(2, np.arange(1), 2, SHA, Teacher(p, np.arange(2)))
    known = remember_feedback(None, first, "float32", 2)
    minus = p.copy()
    minus[0, 0] = -0.0
    second = Query(3, np.arange(1), 2, SHA, Teacher(minus, np.arange(2)))
    frame = encode_query(second, 2, "float32", coding={"delta"}, known=known)
    assert decode_query(frame, SHA, 2, known=known).feedback.p.tobytes() == minus.tobytes()


def test_a_delta_may_lean_on_less_than_its_reader_remembers():
    first, one, known = told("float32 | delta")
    fewer = Known(**{**vars(known), "seen": known.seen & (np.arange(11) < 3)})
    second, two, _ = told("float32 | delta", round_=3)
    frame = encode_query(second, 11, "float32", coding={"delta"}, known=fewer)
    assert len(frame) == len(encode_query(second, 11, "float32")) - 2 * 12 + 1 + 2 + 4
    for reader in (known, fewer):
        assert decode_query(frame, SHA, 11, known=reader).feedback.p.tobytes() == two.p.tobytes()


@pytest.mark.parametrize("chain", ["float32 | delta", "argmax | delta | range_code", "top_k(k=2) | delta"])
def test_feedback_that_leans_on_what_is_not_here_is_refused_and_asked_for_in_full(chain):
    first, one, known = told(chain)
    second, two, _ = told(chain, round_=3)
    frame = encode_query(second, 11, two.encoding, coding=two.coding, known=known)
    other, unseen = known.symbols.copy(), known.seen.copy()
    other[2] = (other[2] + 1) % 3 if other.ndim == 1 else other[2, ::-1]
    unseen[4] = False
    for wrong, sentence in [
        (None, "leans on that of round 2, which is not here"),
        (Known(**{**vars(known), "round": 1}), "leans on that of round 2, which is not here"),
        (Known(**{**vars(known), "encoding": "grid3"}), "which is not here"),
        (Known(**{**vars(known), "symbols": other}), "leans on something else than what is remembered here"),
        (Known(**{**vars(known), "seen": unseen}), "leans on something else than what is remembered here"),
    ]:
        with pytest.raises(CodecError, match=f"{sentence}; {IN_FULL}$"):
            decode_query(frame, SHA, 11, known=wrong)
    assert (
        decode_query(frame, SHA, 11, known=Known.from_arrays(known.to_arrays())).feedback.p.tobytes() == two.p.tobytes()
    )


def test_without_delta_in_the_chain_or_anything_known_a_query_is_what_it_was():
    second, two, known = told("argmax | delta", round_=3)
    plain = encode_query(second, 11, "label")
    assert encode_query(second, 11, "label", known=known) == plain
    assert encode_query(second, 11, "label", coding={"delta"}) == plain
    assert encode_query(second, 11, "label", coding={"delta"}, known=known) == plain  # of the same round: no base
    nothing = Known(**{**vars(known), "round": 1, "seen": np.zeros(11, bool)})
    assert encode_query(second, 11, "label", coding={"delta"}, known=nothing) == plain
