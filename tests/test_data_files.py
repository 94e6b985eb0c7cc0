"""Data in files that others made: IDX, torchvision, folders of images, parquet, hubs."""

import gzip
import hashlib
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fedkd import data_files
from fedkd.dataset import (
    IMAGE_SETS,
    ROOT_VARIABLE,
    dataset,
    load,
    on_disk,
    read,
)
from fedkd.errors import DataError, ExtraError


def hide(monkeypatch, *packages):
    """Make packages look as if they were not installed."""
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


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
