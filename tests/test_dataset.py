"""Data sets: what is read, what is refused and in which words. Every file here is made by the test."""

import gzip
import hashlib
import importlib.util
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fedkd import data_files, parts
from fedkd.dataset import (
    IMAGE_SETS,
    ROOT_VARIABLE,
    as_inputs,
    dataset,
    digits,
    fingerprint,
    labels_among,
    load,
    on_disk,
    read,
    stratified,
)
from fedkd.errors import DataError, ExtraError, FedkdError, SpecError
from fedkd.random import generator


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def rows(n=20, d=3):
    return np.arange(n * d, dtype=np.float32).reshape(n, d)


def hide(monkeypatch, *packages):
    """Make packages look as if they were not installed."""
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


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


# The idx files of MNIST and Fashion-MNIST.


def idx_bytes(a):
    return bytes([0, 0, 8, a.ndim]) + b"".join(n.to_bytes(4, "big") for n in a.shape) + a.tobytes()


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """Four small idx files, some compressed, whose checksums are the known ones of this test."""
    x = np.arange(6 * 28 * 28, dtype=np.int64).astype(np.uint8).reshape(6, 28, 28)
    y = np.array([0, 9, 2, 3, 1, 5], np.uint8)
    contents = [idx_bytes(a) for a in (x[:4], y[:4], x[4:], y[4:])]
    monkeypatch.setitem(data_files.IDX_SHA256, "mnist", tuple(hashlib.sha256(c).hexdigest() for c in contents))
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for i, (name, content) in enumerate(zip(data_files.IDX_FILES, contents, strict=True)):
        (raw / (name + ".gz" * (i % 2))).write_bytes(gzip.compress(content) if i % 2 else content)
    return SimpleNamespace(root=tmp_path, raw=raw, x=x, y=y)


def test_mnist_is_read_from_idx_files_plain_or_compressed(tiny_mnist):
    with pytest.warns(UserWarning, match="4 of 10 classes have no row"):
        stored = load(f"mnist:{tiny_mnist.root}")
    assert stored.name == "MNIST" and stored.classes == 10
    assert stored.x.dtype == np.uint8 and (stored.x == tiny_mnist.x[:4, None]).all()
    assert stored.y_test.tolist() == [1, 5]


def test_mnist_is_found_through_the_environment(tiny_mnist, monkeypatch):
    monkeypatch.setenv(ROOT_VARIABLE, str(tiny_mnist.raw))
    assert len(dataset.build("mnist(root='/nowhere')")().x) == 4
    assert on_disk()["mnist"] == str(tiny_mnist.raw)


def test_an_altered_idx_file_is_refused(tiny_mnist):
    file = tiny_mnist.raw / data_files.IDX_FILES[0]
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(DataError, match="train-images-idx3-ubyte does not match its checksum"):
        load(f"mnist:{tiny_mnist.root}")


def test_a_torn_compressed_file_is_one_clear_line(tiny_mnist):
    file = tiny_mnist.raw / (data_files.IDX_FILES[1] + ".gz")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot read .*train-labels"):
        load(f"mnist:{tiny_mnist.root}")


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x08", b"\x00\x00\x0d\x01\x00\x00\x00\x01a", idx_bytes(np.zeros(5, np.uint8))[:-1]]
)
def test_bytes_that_are_no_idx_file_are_refused(content):
    with pytest.raises(DataError, match="not an idx file"):
        data_files.idx(content, "a file")


def test_missing_files_say_where_they_were_looked_for_and_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr("fedkd.dataset.DEBIAN", str(tmp_path))
    for name, words in {
        "mnist": "MNIST', download=True",
        "fashion_mnist": "install Debian's dataset-fashion-mnist",
        "cifar10": "cifar-10-batches-py",
        "cifar100": "cifar-100-python",
    }.items():
        with pytest.raises(DataError, match=words):
            load(f"{name}(root='{tmp_path}/nothing')")


def test_debians_fashion_mnist_is_found_by_itself():
    if not on_disk()["fashion_mnist"]:
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    stored = dataset.build("fashion_mnist")()
    assert (stored.x.shape, stored.x_test.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert (np.bincount(stored.y) == 6000).all() and stored.class_names[9] == "ankle boot"
    assert abs(float(stored.x.mean()) / 255 - 0.2860) < 1e-4 and "MIT" in stored.license


# torchvision, replaced by a stand-in: its downloads are not our business.


def stand_in(monkeypatch, make):
    module = SimpleNamespace(datasets=SimpleNamespace(**dict.fromkeys(IMAGE_SETS, make)))
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module.datasets)


def test_torchvision_sets_become_channels_first_and_are_not_downloaded_unless_asked(monkeypatch):
    asked = []

    def make(root, *, train, download):
        asked.append(download)
        x = np.arange(2 * 32 * 32 * 3).astype(np.uint8).reshape(2, 32, 32, 3)
        return SimpleNamespace(data=x, targets=[0, 1], classes=["cat", "big_dog"])

    stand_in(monkeypatch, make)
    stored = dataset.build("torchvision(name='CIFAR10')")()
    assert stored.x.shape == (2, 3, 32, 32) and stored.x.ravel()[:2].tolist() == [0, 3]
    assert stored.class_names == ("cat", "big dog") and stored.classes == 2
    assert asked == [False, False]


@pytest.mark.parametrize(("download", "words"), [(False, "it is not in"), (True, "the download failed")])
def test_torchvision_without_files_says_what_to_do(monkeypatch, download, words):
    def make(root, *, train, download):
        raise RuntimeError("Dataset not found.\nYou can use download=True")

    stand_in(monkeypatch, make)
    with pytest.raises(DataError, match=words) as caught:
        load(f"torchvision(name='KMNIST', root='/nowhere', download={download})")
    assert "\n" not in str(caught.value)


def test_an_unknown_torchvision_set_lists_the_known():
    with pytest.raises(DataError, match="one of MNIST, FashionMNIST, KMNIST, CIFAR10, CIFAR100, got 'SVHN'"):
        load("torchvision:SVHN")


def test_what_is_not_installed_is_named_with_its_install_line(monkeypatch, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    hide(monkeypatch, "torchvision", "pyarrow", "flwr_datasets", "datasets")
    for spec, words in {
        "torchvision:MNIST": r"torchvision, .*fedkd\[torch\]",
        f"parquet:{tmp_path / 'a.parquet'}": r"pyarrow, .*fedkd\[hub\]",
        "hf:ylecun/mnist": r"flwr-datasets, .*fedkd\[hub\]",
    }.items():
        with pytest.raises(ExtraError, match=words):
            load(spec)


# The Hugging Face hub, replaced by a stand-in.


def test_a_hub_that_cannot_be_reached_names_the_local_ways(monkeypatch):
    class Hub:
        def __init__(self, **options):
            raise ConnectionError("Couldn't reach 'x/y' on the Hub (OfflineModeIsEnabled)\nmore")

    monkeypatch.setitem(sys.modules, "flwr_datasets", SimpleNamespace(FederatedDataset=Hub))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_from_disk=None))
    with pytest.raises(DataError, match=r"Couldn't reach 'x/y'.*internet use 'digits'.*'npz:PATH'") as caught:
        load("hf:x/y")
    assert "\n" not in str(caught.value)


# Folders of images and Parquet files.


def image(value, size=4, mode="L"):
    pillow = pytest.importorskip("PIL.Image")
    return pillow.new(mode, (size, size), value)


@pytest.fixture
def animals(tmp_path):
    for part, n in (("train", 5), ("test", 1)):
        for value, name in ((10, "cat"), (200, "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(n):
                image(value + i).save(tmp_path / part / name / f"{i}.png")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image", encoding="utf-8")
    return tmp_path


def test_a_folder_has_one_sub_folder_for_each_class(animals):
    stored = load(f"folder(path='{animals}', size=4, gray=True)")
    assert stored.class_names == ("cat", "dog") and stored.y.tolist() == [0] * 5 + [1] * 5
    assert stored.x[:, 0, 0, 0].tolist() == [10, 11, 12, 13, 14, 200, 201, 202, 203, 204]
    assert stored.x_test[:, 0, 3, 3].tolist() == [10, 200]
    resized = load(f"folder:{animals / 'train'}")
    assert resized.x.shape[1:] == (3, 32, 32) and len(resized.x_test) == 2
    assert not stored.columns, "file names tell the class"


def test_a_damaged_image_is_named(animals):
    (animals / "train" / "cat" / "9.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DataError, match="9.png is not a readable image"):
        load(f"folder:{animals}")


def test_a_folder_without_images_says_what_was_expected(tmp_path, animals):
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="holds no sub-folders with images"):
        load(f"folder:{tmp_path / 'bare'}")
    (animals / "train" / "eel").mkdir()
    with pytest.raises(DataError, match="eel holds no images"):
        load(f"folder:{animals}")
    with pytest.raises(DataError, match="is not a folder"):
        load("folder:nowhere")


def save_parquet(path, **columns):
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").table(columns), path)
    return f"parquet:{path}"


def png(value, name, size=4, mode="L"):
    stream = io.BytesIO()
    image(value, size, mode).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": name}


def test_parquet_decodes_images_and_never_shows_their_file_names(tmp_path):
    pictures = [png(i, f"dog/{i}.png") for i in range(10)]
    spec = save_parquet(tmp_path / "a.parquet", image=pictures, label=[0, 1] * 5, site=list("abcdefghij"))
    stored = read(spec)
    assert stored.x.shape == (10, 1, 4, 4) and stored.x[7].max() == 7
    assert list(stored.columns) == ["site"] and stored.columns["site"].tolist() == list("abcdefghij")
    assert not any("dog" in str(column) for column in stored.columns.values())
    pictures = [png((1, 2, 3), "x", mode="RGB"), png(9, "y")]
    color = read(save_parquet(tmp_path / "b.parquet", image=pictures, label=[0, 1]))
    assert color.x[:, :, 0, 0].tolist() == [[1, 2, 3], [9, 9, 9]]


def test_parquet_without_images_takes_its_numeric_columns(tmp_path):
    spec = save_parquet(
        tmp_path / "a.parquet", age=[30, 40, 50], job=["x", None, "z"], pay=[1.5, 2.5, 3.5], rich=["no", "yes", "no"]
    )
    stored = read(f"parquet(path='{spec[8:]}', label='rich')")
    assert stored.x.tolist() == [[30, 1.5], [40, 2.5], [50, 3.5]] and stored.x.dtype == np.float32
    assert stored.y.tolist() == [0, 1, 0] and stored.class_names == ("no", "yes")
    assert stored.columns["job"].tolist() == ["x", "", "z"] and "rich" not in stored.columns


def test_a_folder_of_parquet_files_has_train_and_test(tmp_path):
    save_parquet(tmp_path / "train-00000-of-00002.parquet", v=[1.0, 2.0], label=[0, 1])
    save_parquet(tmp_path / "train-00001-of-00002.parquet", v=[3.0, 4.0], label=[2, 1])
    save_parquet(tmp_path / "test-00000-of-00001.parquet", v=[5.0], label=[0])
    stored = load(f"parquet:{tmp_path}")
    assert stored.x[:, 0].tolist() == [1, 2, 3, 4] and stored.x_test.tolist() == [[5]]


def test_names_of_classes_come_from_the_hubs_metadata(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    table = pa.table({"v": [1.0, 2.0], "label": [1, 0]}).replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read(f"parquet:{tmp_path / 'a.parquet'}").class_names == ("cat", "dog")
    parquet.write_table(table.set_column(1, "label", [[1, 2]]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="got 2"):
        read(f"parquet:{tmp_path / 'b.parquet'}")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"v": [1.0, None], "label": [0, 1]}, "NaN or infinity in 1 of 2"),
        ({"v": [1.0, 2.0], "label": [0, None]}, "'label' must be numbers or text without gaps"),
        ({"word": ["a", "b"], "label": [0, 1]}, "neither an image column .* nor numeric columns; it has word, label"),
        ({"image": [{"bytes": None, "path": "a.png"}], "label": [0]}, "1 of 1 images are missing"),
        ({"image": [b"nonsense"], "label": [0]}, "image 0 is not a readable image"),
        ({"image": [[1, 2], [3]], "label": [0, 1]}, "arrays of one shape"),
        ({"image": ["a.png", "b.png"], "label": [0, 1]}, "must be numbers of shape"),
    ],
)
def test_wrong_tables_are_one_clear_line(tmp_path, columns, words):
    with pytest.raises(DataError, match=words):
        load(save_parquet(tmp_path / "a.parquet", **columns))


def test_images_of_different_size_and_files_that_are_no_table_are_refused(tmp_path):
    spec = save_parquet(tmp_path / "a.parquet", image=[png(1, "a"), png(1, "b", size=5)], label=[0, 1])
    with pytest.raises(DataError, match=r"differ in size, \(4, 4\) and \(5, 5\) at row 1"):
        load(spec)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="b.parquet as Parquet"):
        load(f"parquet:{tmp_path / 'b.parquet'}")
    with pytest.raises(DataError, match="does not exist"):
        load("parquet:nowhere.parquet")


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
