"""Data sets: what is read, what is refused and in which words. Every file here is made by the test."""

import hashlib
import importlib.util
import json

import numpy as np
import pytest

from fedkd import data_files, parts
from fedkd.dataset import (
    as_inputs,
    dataset,
    digits,
    fingerprint,
    labels_among,
    load,
    read,
    stratified,
)
from fedkd.errors import DataError, FedkdError, SpecError
from fedkd.random import generator


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def rows(n=20, d=3):
    return np.arange(n * d, dtype=np.float32).reshape(n, d)


# The bundled digits.


def test_digits_are_the_ones_of_scikit_learn():
    stored = digits()
    assert stored.x.shape == (1397, 1, 8, 8) and stored.x_test.shape == (400, 1, 8, 8)
    assert stored.x.dtype == np.float32 and stored.x.min() == 0 and stored.x.max() == 1
    assert stored.classes == 10 and "CC BY 4.0" in stored.license
    package = importlib.util.find_spec("sklearn")
    if package is None:
        pytest.skip("needs scikit-learn's copy to compare with")
    table = np.loadtxt(data_files.Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    ours = {(row.tobytes(), int(label)) for row, label in zip(stored.x, stored.y, strict=True)}
    ours |= {(row.tobytes(), int(label)) for row, label in zip(stored.x_test, stored.y_test, strict=True)}
    theirs = (table[:, :-1] / 16).astype(np.float32)
    assert ours == {(row.tobytes(), int(label)) for row, label in zip(theirs, table[:, -1], strict=True)}
    assert len(ours) == 1797


def test_the_digits_split_is_the_same_everywhere_and_forever():
    stored = load("digits")
    assert fingerprint(stored.x) == "d77099b01a416b74898ee298ef68b9fc2a6c34baa80f0be935275c9f3683714a"
    assert fingerprint(stored.x_test) == "568154ff4485a1c742a03fa6aa7a65955a6f6adb99e6692ad3b6d6298ef17808"
    assert set(np.bincount(stored.y_test)) <= {39, 40, 41}


def test_bundled_digits_that_were_altered_are_refused(tmp_path, monkeypatch):
    source = data_files.Path(data_files.__file__).with_name("digits.json")
    stored = json.loads(source.read_text(encoding="utf-8"))
    assert source.stat().st_size < 100_000
    stored["sha256"] = "0" * 64
    (tmp_path / "digits.json").write_text(json.dumps(stored), encoding="utf-8")
    monkeypatch.setattr("fedkd.dataset.__file__", str(tmp_path / "dataset.py"))
    with pytest.raises(DataError, match="checksum; reinstall"):
        digits()
    (tmp_path / "digits.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="cannot read the bundled digits"):
        digits()


# Inputs and fingerprints.


def test_bytes_become_numbers_up_to_one_and_numbers_stay():
    assert as_inputs(np.array([[0, 51, 255]], np.uint8)).tolist() == [[0, np.float32(0.2), 1]]
    x = np.array([[3.5]], np.float32)
    assert as_inputs(x) is x


def test_a_fingerprint_tells_content_order_shape_and_type_but_not_memory_layout():
    x = rows(4, 2)
    others = [x[::-1], x.reshape(2, 4), x.astype(np.float64), x + 1, x[:3], x.view(np.int32)]
    assert len({fingerprint(x), *map(fingerprint, others)}) == 7
    assert fingerprint(np.asfortranarray(x)) == fingerprint(x) == fingerprint(x.astype(">f4"))
    assert fingerprint(np.array([[1, 2]], np.uint8)) == hashlib.sha256(b"|u1 (1, 2)\x01\x02").hexdigest()


# A stratified draw.


def test_a_stratified_draw_takes_each_class_in_proportion():
    y = np.repeat([0, 1, 2], [60, 30, 10])
    drawn = stratified(y, 20, generator(0, "draw"))
    assert np.bincount(y[drawn]).tolist() == [12, 6, 2]
    assert (np.diff(drawn) > 0).all()


def test_a_stratified_draw_leaves_the_only_row_of_a_class():
    y = np.array([0] * 9 + [1])
    assert all(9 not in stratified(y, 2, generator(seed, "draw")) for seed in range(20))


def test_a_set_without_a_test_part_gives_a_fifth_of_its_rows_with_their_columns(tmp_path):
    site = np.arange(20) % 4
    stored = load(save_npz(tmp_path / "a.npz", x=rows(), y=np.arange(20) % 2, site=site))
    assert (len(stored.x), len(stored.x_test)) == (16, 4)
    assert np.bincount(stored.y_test).tolist() == [2, 2]
    assert sorted([*stored.x[:, 0], *stored.x_test[:, 0]]) == rows()[:, 0].tolist()
    assert (stored.columns["site"] == (stored.x[:, 0] / 3).astype(int) % 4).all()


# npz.


def test_npz_reads_a_test_part_and_turns_images_channels_first(tmp_path):
    x = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    stored = load(save_npz(tmp_path / "a.npz", x=x, y=[0, 1], x_test=x[:1], y_test=[2]))
    assert stored.x.shape == (2, 3, 4, 5) and stored.x.dtype == np.uint8
    assert stored.x[1, 2, 3, 4] == x[1, 3, 4, 2]
    assert stored.classes == 3 and stored.y_test.tolist() == [2]
    gray = load(save_npz(tmp_path / "b.npz", x=x[..., 0], y=[0, 1]))
    assert gray.x.shape[1:] == (1, 4, 5)


def test_names_of_classes_are_numbered_in_alphabetical_order(tmp_path):
    spec = save_npz(tmp_path / "a.npz", x=rows(3), y=["eel", "cat", "eel"], x_test=rows(1), y_test=["dog"])
    stored = load(spec)
    assert stored.class_names == ("cat", "dog", "eel")
    assert stored.y.tolist() == [2, 0, 2] and stored.y_test.tolist() == [1]


def test_a_pool_without_labels_can_be_read_but_is_no_data(tmp_path):
    spec = save_npz(tmp_path / "pool.npz", x=rows())
    assert read(spec).classes == 0 and len(read(spec).x) == 20
    with pytest.raises(DataError, match="has no labels: it can be a transfer set"):
        load(spec)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": [0]}, "has no array 'x'; it has y"),
        ({"x": rows(0), "y": np.zeros(0, int)}, "is empty"),
        ({"x": rows(), "y": np.zeros(19, int)}, "20 inputs but 19 labels"),
        ({"x": np.full((4, 2), np.nan), "y": [0, 1, 0, 1]}, "NaN or infinity in 4 of 4 rows"),
        ({"x": np.array([[1e300], [0]]), "y": [0, 1]}, "NaN or infinity in 1 of 2 rows"),
        ({"x": rows(2), "y": [-1, 0]}, "labels must be 0 or above, got -1"),
        ({"x": rows(2), "y": [0, 700_000]}, "got 700000; is this column a class"),
        ({"x": rows(2), "y": [0.5, 1.0]}, "must be class numbers or names, got float64"),
        ({"x": rows(2), "y": np.zeros((2, 3), int)}, r"must have shape \(N,\), got \(2, 3\)"),
        ({"x": np.array(["a", "b"]), "y": [0, 1]}, "must be numbers of shape"),
        ({"x": rows(2), "y": [0, 1], "x_test": rows(2)}, "both 'x_test' and 'y_test', or neither"),
        ({"x": rows(2), "y": [0, 1], "x_test": rows(1, 5), "y_test": [0]}, r"has shape \(5,\), a train row \(3,\)"),
        ({"x": rows(2), "y": [0, 1], "x_test": rows(2), "y_test": [0]}, "2 test inputs but 1 labels"),
        ({"x": rows(2), "y": [0, 1], "x_test": rows(1), "y_test": ["cat"]}, "unknown class 'cat'"),
        ({"x": rows(1), "y": [0]}, "at least 2 rows to cut a test part from, got 1"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_one_clear_line(tmp_path, arrays, words):
    with pytest.raises(DataError, match=words) as caught:
        load(save_npz(tmp_path / "wrong.npz", **arrays))
    assert "\n" not in str(caught.value)


def test_an_npz_with_python_objects_is_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "bomb.npz", x=np.array([Bomb()], dtype=object), y=[0])
    with pytest.raises(DataError, match="not a .npz file of plain arrays"):
        load(f"npz:{tmp_path / 'bomb.npz'}")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"nonsense", b"\x93NUMPY"])
def test_a_damaged_npz_is_one_clear_line(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="not a .npz file"):
        load(f"npz:{tmp_path / 'a.npz'}")


def test_a_single_array_is_not_an_npz(tmp_path):
    np.save(tmp_path / "a.npy", rows())
    with pytest.raises(DataError, match="not a .npz file"):
        load(f"npz:{tmp_path / 'a.npy'}")


# A client's own files.


def test_a_clients_own_class_names_are_matched_to_the_federations(tmp_path):
    shared = load(save_npz(tmp_path / "all.npz", x=rows(9), y=["cat", "dog", "eel"] * 3))
    mine = read(save_npz(tmp_path / "mine.npz", x=rows(3), y=["eel", "dog", "eel"]))
    assert mine.y.tolist() == [1, 0, 1]
    assert labels_among(mine, shared).tolist() == [2, 1, 2]
    strange = read(save_npz(tmp_path / "strange.npz", x=rows(1), y=["fox"]))
    with pytest.raises(DataError, match="class 'fox', not one of cat, dog, eel"):
        labels_among(strange, shared)


def test_a_clients_own_numbers_must_be_in_range_and_its_rows_alike(tmp_path):
    shared = load(save_npz(tmp_path / "all.npz", x=rows(9), y=np.arange(9) % 3))
    fits = read(save_npz(tmp_path / "fits.npz", x=rows(2), y=[2, 0]))
    assert labels_among(fits, shared).tolist() == [2, 0]
    with pytest.raises(DataError, match="label 3; the federation has 3 classes"):
        labels_among(read(save_npz(tmp_path / "far.npz", x=rows(1), y=[3])), shared)
    with pytest.raises(DataError, match=r"rows of shape \(2,\), the federation \(3,\)"):
        labels_among(read(save_npz(tmp_path / "thin.npz", x=rows(1, 2), y=[0])), shared)


# All members.


@pytest.mark.parametrize("name", dataset.names())
def test_every_data_set_is_documented_and_fails_with_an_error_of_ours(name, monkeypatch, tmp_path):
    part = dict(dataset)[name]
    assert part.__doc__
    if name in ("digits", "hf", "torchvision"):  # always there; tested above with a stand-in
        return
    first = next(iter(part.__kwdefaults__ or {}), None) or "path"
    monkeypatch.setattr("fedkd.dataset.DEBIAN", str(tmp_path))
    with pytest.raises(FedkdError, match="not"):
        load(f"{name}({first if name not in ('npz', 'folder', 'parquet') else 'path'}='{tmp_path}/nothing')")


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(SpecError, match="unknown data set 'digit'. Did you mean 'digits'?"):
        load("digit")


def test_labels_that_do_not_count_up_and_a_single_class_are_warned_of(tmp_path):
    gaps = save_npz(tmp_path / "gaps.npz", x=rows(3), y=[0, 50, 100])
    with pytest.warns(UserWarning, match="98 of 101 classes have no row"):
        assert load(gaps).classes == 101
    one = save_npz(tmp_path / "one.npz", x=rows(60), y=np.arange(60) % 3 + (np.arange(60) % 3 == 2))
    with pytest.warns(UserWarning, match="one.npz: class 2 has no row; number the classes 0, 1, 2") as told:
        load(one)
    assert "\n" not in str(told[0].message)
    single = save_npz(tmp_path / "single.npz", x=rows(2), y=[0, 0])
    with pytest.warns(UserWarning, match="all labels are 0"):
        load(single)


def test_images_with_alpha_are_turned_channels_first(tmp_path):
    x = np.zeros((2, 16, 16, 4), np.uint8)
    assert load(save_npz(tmp_path / "a.npz", x=x, y=[0, 1])).x.shape[1:] == (4, 16, 16)


def test_what_is_no_npz_is_named_in_our_words(tmp_path):
    np.save(tmp_path / "bare.npy", np.zeros((2, 3)))
    (tmp_path / "text.csv").write_text("1,2,3")
    with pytest.raises(DataError, match="is not a .npz file but a .npy file, one bare array; write one with"):
        load(f"npz:{tmp_path / 'bare.npy'}")
    with pytest.raises(DataError, match="is not a .npz file but something else"):
        load(f"npz:{tmp_path / 'text.csv'}")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("d.csv", r"is a table .* save it as .npz or .parquet, .* then parquet:d.parquet"),
        ("csv:x/d.tsv", r"to_parquet\('d.parquet'\)"),
        ("x/d.npz", "is a path; say what reads it, as in npz:x/d.npz"),
        ("d.parquet", "as in parquet:d.parquet"),
    ],
)
def test_a_bare_path_or_a_table_says_what_to_write_instead(spec, words):
    for check in (parts.CHECKS["data"], parts.CHECKS["transfer"]):
        with pytest.raises(SpecError, match=words):
            check(spec)
    parts.CHECKS["data"]("npz:d.npz")
