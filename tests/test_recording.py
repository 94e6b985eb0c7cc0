"""Ballots on disk: every bit comes back, in as few bytes as the encoding needs."""

import errno

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import recording
from fedkd.collect import onto
from fedkd.errors import CheckpointError
from fedkd.events import NonPrivate, NoOp
from fedkd.files import load_arrays, save_arrays
from fedkd.recording import load_round, path_of, save_round
from fedkd.records import Query, Release
from fedkd.release import prepare
from fedkd.select import Selection

CHAINS = ["float32", "float16", "argmax", *(f"quantize(bits={bits})" for bits in range(1, 9))]


def soft_labels(rows, classes, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), rows).astype(np.float32)


def released(chain, rows=40, classes=3, seed=0, w=None):
    weights = np.random.default_rng(seed + 1).random(rows).astype(np.float32) if w is None else w
    release = Release(soft_labels(rows, classes, seed), weights, NoOp() if seed % 2 else NonPrivate())
    return prepare(chain, release, np.random.default_rng(seed))


def asked(indices, classes=3, round_=1):
    return Query(round_, np.asarray(indices), classes, "ab" * 32)


def same(a, b):
    bits = [(x.dtype, x.shape, x.tobytes()) for x in (a.p, a.w)] == [
        (x.dtype, x.shape, x.tobytes()) for x in (b.p, b.w)
    ]
    return bits and (a.event, a.encoding) == (b.event, b.encoding)


@pytest.mark.parametrize("chain", CHAINS)
def test_every_bit_of_every_encoding_comes_back(tmp_path, chain):
    query = asked(np.arange(40), round_=7)
    releases = {key: released(chain, seed=key) for key in (0, 5, 11)}
    back = load_round(save_round(tmp_path, query, releases))
    assert path_of(tmp_path, 7).name == "round-0007.safetensors"
    assert list(back.releases) == [0, 5, 11]
    assert all(same(back.releases[key], releases[key]) for key in releases)
    assert (back.query.round, back.query.classes, back.query.fingerprint) == (7, 3, "ab" * 32)
    assert back.query.feedback is None


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CHAINS), st.integers(0, 30), st.integers(1, 300), st.integers(0, 2**20))
def test_shapes_of_any_size_come_back(tmp_path_factory, chain, rows, classes, seed):
    release = released(chain, rows, classes, seed)
    saved = save_round(tmp_path_factory.mktemp("any"), asked(np.arange(rows), classes), {3: release})
    assert same(load_round(saved).releases[3], release)


@pytest.mark.parametrize(
    ("chain", "bytes_per_row"), [("argmax", 1), ("quantize(bits=4)", 10), ("float16", 20), ("float32", 40)]
)
def test_a_file_takes_what_its_encoding_needs_and_a_header(tmp_path, chain, bytes_per_row):
    rows, flat = 5000, np.full(5000, 0.25, np.float32)
    releases = {key: released(chain, rows, 10, key, w=flat) for key in range(2)}
    size = save_round(tmp_path, asked(np.arange(rows), 10), releases).stat().st_size
    assert 2 * rows * bytes_per_row < size < 2 * rows * bytes_per_row + 1500  # equal weights are one number


def test_labels_of_many_classes_take_two_bytes(tmp_path):
    release = released("argmax", 10, 300)
    release.p[0] = 0
    release.p[0, 299] = 1
    path = save_round(tmp_path, asked(np.arange(10), 300), {0: release})
    back = load_round(path).releases[0]
    assert load_arrays(path)[0]["0.p"].dtype == np.uint16
    assert back.p[0].argmax() == 299
    assert same(back, release)


def test_rows_and_selection_come_back_whether_all_were_asked_or_few(tmp_path):
    few = np.array([1, 4, 9, 17])
    selection = Selection(few, np.arange(20), np.array([4]))
    back = load_round(save_round(tmp_path, asked(few), {0: released("float16", 4)}, selection=selection))
    assert back.query.indices.tolist() == [1, 4, 9, 17]
    assert back.selection.ask.tolist() == [1, 4, 9, 17]
    assert back.selection.learn.tolist() == list(range(20))
    assert back.selection.forget.tolist() == [4]
    plain = load_round(save_round(tmp_path, asked(few), {0: released("float16", 4)}))
    assert plain.selection.learn.tolist() == [1, 4, 9, 17]
    assert plain.selection.forget.tolist() == []


def test_a_round_that_asked_nothing_comes_back(tmp_path):
    query = asked(np.arange(0))
    back = load_round(save_round(tmp_path, query, {2: released("float16", 0)}))
    assert back.releases[2].p.shape == (0, 3)
    assert back.query.indices.tolist() == []


@pytest.mark.parametrize("past", [np.array([0, 4, 7]), np.arange(0)])
def test_a_late_answer_with_rows_that_it_does_not_know_comes_back(tmp_path, past):
    late = onto(np.array([1, 4, 5]), past, released("float16", len(past)))
    assert same(load_round(save_round(tmp_path, asked([1, 4, 5]), {0: late})).releases[0], late)


@pytest.mark.parametrize("encoding", ["label", "grid3", "float16", "top2", "grid9"])
def test_what_is_not_on_the_grid_that_it_names_is_kept_whole(tmp_path, encoding):
    p = np.array([[0.1, 0.2, 0.7], [np.nan, -0.0, 7e9]], np.float32)
    release = Release(p, np.array([0.0, -0.0], np.float32), NonPrivate(), encoding)
    assert same(load_round(save_round(tmp_path, asked([0, 1]), {0: release})).releases[0], release)


def test_an_event_that_this_version_does_not_know_fails_closed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("fedkd.events.to_code", lambda event: 200)
        path = save_round(
            tmp_path, asked(np.arange(4)), {0: Release(soft_labels(4, 3), np.ones(4, np.float32), NoOp())}
        )
    assert load_round(path).releases[0].event == NonPrivate()


def test_a_damaged_a_missing_and_a_foreign_file_are_one_line(tmp_path):
    path = save_round(tmp_path, asked(np.arange(40)), {0: released("float16")})
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    foreign = tmp_path / "checkpoint.safetensors"
    save_arrays(foreign, {"x": np.ones(3)}, {"round": 1})
    listed = tmp_path / "list.safetensors"
    save_arrays(listed, {}, [1, 2])
    for file, words in (
        (path, "checksum"),
        (tmp_path / "nothing", "cannot read"),
        (foreign, "expected 'ballots 1', got 'None'"),
        (listed, "holds no ballots"),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            load_round(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": 4}, "shape"),
        ({"classes": 10**9}, "number of classes"),
        ({"rows": {"ask": 10**12, "learn": 4, "forget": 0}}, "impossible number of rows"),
        ({"rows": {"ask": 3, "learn": 4, "forget": 0}}, "shape"),
        ({"clients": {"0": {"form": "pickle", "encoding": "float16", "event": [0, {}]}}}, "unknown form"),
        ({"clients": {"0": {"form": "whole", "encoding": "float16", "event": [1]}}}, "damaged"),
        ({"clients": {"x": {"form": "float16", "encoding": "float16", "event": [0, {}]}}}, "damaged"),
        ({"clients": {"1": {"form": "float16", "encoding": "float16", "event": [0, {}]}}}, "damaged"),
        ({"clients": [1]}, "damaged"),
        ({"round": None}, "expected a round"),
    ],
)
def test_a_header_that_lies_is_one_line(tmp_path, monkeypatch, change, words):
    def lie(path, arrays, header):
        save_arrays(path, arrays, {**header, **change})

    monkeypatch.setattr(recording, "save_arrays", lie)
    path = save_round(tmp_path, asked(np.arange(4)), {0: released("float16", 4)})
    with pytest.raises(CheckpointError, match=words) as caught:
        load_round(path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    def full(path, arrays, header):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recording, "save_arrays", full)
    with pytest.raises(CheckpointError, match="No space left.*record = false"):
        save_round(tmp_path, asked(np.arange(4)), {0: released("float16", 4)})
