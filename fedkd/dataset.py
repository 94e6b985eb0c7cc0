"""Labeled data: private rows for the clients and a test part. Nothing is downloaded unless the spec asks for it.

A member of :data:`dataset` is a function with keyword-only options. Images are channels first (N, C, H, W), uint8 or
float32; everything else is float32 (N, d), as it comes. Files are read in :mod:`fedkd.data_files`.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedkd import data_files
from fedkd.data_files import Part
from fedkd.errors import DataError, SpecError
from fedkd.random import generator
from fedkd.registry import Registry
from fedkd.softlabels import Array, distinct

ROOT = "~/.fedkd/data"
ROOT_VARIABLE = "FEDKD_DATA_DIR"  # not FEDKD_DATA: the configuration reads that one as its key ``data``
DEBIAN = "/usr/share/datasets"
UNSTATED = "not stated in the files"
IMAGE_SETS = {
    "MNIST": "CC BY-SA 3.0 as usually cited (Y. LeCun, C. Cortes)",
    "FashionMNIST": "MIT (Zalando SE)",
    "KMNIST": "CC BY-SA 4.0 as its authors state (CODH, Japan)",
    "CIFAR10": "not stated by its authors (A. Krizhevsky, 2009)",
    "CIFAR100": "not stated by its authors (A. Krizhevsky, 2009)",
}
"""Name in torchvision to license."""
CLOTHES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
)  # fmt: skip
TEST_SHARE = 0.2  # of a data set that has no test part of its own

dataset = Registry("data set")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train part ``x`` (N, ...), ``y`` (N,) int64 and a test part alike; ``columns`` hold what else a train row has.

    ``columns`` (N,) serve natural partitions only. A set without labels has an empty ``y`` and 0 ``classes``: it can
    be a transfer set, and :func:`load` refuses it.
    """

    name: str
    x: Array
    y: Array
    x_test: Array
    y_test: Array
    classes: int
    license: str
    class_names: tuple[str, ...] = ()
    columns: dict[str, Array] = field(default_factory=dict)


@functools.lru_cache(maxsize=8)
def load(spec: str) -> Dataset:
    """Return the data set that ``spec`` names, checked; a set without a test part gives a fifth of its rows to one."""
    data = read(spec)
    if not data.classes:
        raise DataError(f"data {spec!r} has no labels: it can be a transfer set, but not data")
    data = data if len(data.x_test) else _cut_test(data, round(TEST_SHARE * len(data.x)))
    _warn_of_odd_labels(data)
    return data


@functools.lru_cache(maxsize=4)
def read(spec: str) -> Dataset:
    """Return the data set as it is stored, checked: maybe without a test part, maybe without labels."""
    data: Dataset = dataset.build(spec)()
    return _checked(data, spec)


FILES = {".npz": "npz", ".parquet": "parquet"}
"""Ending of a file to the data set that reads it."""
TABLES = (".csv", ".tsv", ".xls", ".xlsx")


def check(spec: str) -> functools.partial[Any]:
    """Return the built part of a data spec without reading anything; raise :class:`SpecError` if there is none."""
    check_ending(spec)
    return dataset.build(spec)


def check_ending(spec: str) -> None:
    """Raise :class:`SpecError` for a bare path, and for a table that no data set reads, with what to write instead."""
    path = Path(spec.strip().rpartition(":")[2])
    if path.suffix.lower() in TABLES:
        instead = f"{path.stem}.parquet"
        raise SpecError(
            f"{spec!r} is a table that fedkd does not read; save it as .npz or .parquet, as with pandas: "
            f"read_csv({path.name!r}).to_parquet({instead!r}), then parquet:{instead}."
        )
    reader = FILES.get(path.suffix.lower())
    if reader is not None and ":" not in spec:
        raise SpecError(f"{spec!r} is a path; say what reads it, as in {reader}:{path}.")


def as_inputs(x: Array) -> Array:
    """Return ``x`` (N, ...) as float32, what a learner sees: uint8 is divided by 255, float32 stays as it is."""
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    return x.astype(np.float32, copy=False)


def fingerprint(x: Array) -> str:
    """Return the SHA-256 (hex) of the type, shape, content and order of ``x``; equal on every machine."""
    little = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{little.dtype.str} {x.shape}".encode())
    digest.update(little.tobytes())
    return digest.hexdigest()


def labels_among(mine: Dataset, shared: Dataset) -> Array:
    """Return the labels (N,) of ``mine`` as class numbers of ``shared``: a client's own files in a federation.

    A client may hold only some classes, so numbers made from names on its device mean something else than the
    federation's. Where both know the names, names decide; otherwise the numbers must be in range.
    """
    if mine.x.shape[1:] != shared.x.shape[1:]:
        raise DataError(f"{mine.name} has rows of shape {mine.x.shape[1:]}, the federation {shared.x.shape[1:]}")
    if mine.class_names and shared.class_names:
        strange = sorted(set(mine.class_names) - set(shared.class_names))
        if strange:
            raise DataError(f"{mine.name} has the class {strange[0]!r}, not one of {_listed(shared.class_names)}")
        return np.array([shared.class_names.index(name) for name in mine.class_names], np.int64)[mine.y]
    if mine.classes > shared.classes:
        raise DataError(f"{mine.name} has the label {mine.classes - 1}; the federation has {shared.classes} classes")
    return mine.y


def on_disk() -> dict[str, str]:
    """Return for each named data set where it lies on this machine, or an empty string."""
    return {
        "digits": "bundled",
        "mnist": str(data_files.find_idx(_folders(ROOT, "MNIST")) or ""),
        "fashion_mnist": str(data_files.find_idx(_folders(ROOT, "FashionMNIST")) or ""),
        "cifar10": str(_find_folder(ROOT, "cifar-10-batches-py") or ""),
        "cifar100": str(_find_folder(ROOT, "cifar-100-python") or ""),
    }


def how_to_get(name: str) -> str:
    """Return how the data set ``name`` of :func:`on_disk` comes onto this machine."""
    return f"not on this machine: {_remedy(name, f'in {ROOT} or ${ROOT_VARIABLE}')}"


def _remedy(name: str, place: str) -> str:
    title = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}[name]
    files = "unpack its Python version" if name.startswith("cifar") else "put its four idx files"
    debian = "install Debian's dataset-fashion-mnist, " if name == "fashion_mnist" else ""
    download = f"data = \"torchvision(name='{title}', download=True)\""
    return f"{debian}{files} {place}, or allow a download: {download}"


# The members, from the one that is always there to those that need a file, a package or the network.


@dataset
def digits() -> Dataset:
    """Handwritten digits, 1797 gray images of 8x8 pixels in [0, 1], 10 classes, bundled (Alpaydin and Kaynak, 1998).

    The 400 test rows are a stratified draw with a fixed seed.
    """
    source = Path(__file__).with_name("digits.json")
    try:
        stored = json.loads(source.read_text(encoding="utf-8"))
        pixels, labels = (zlib.decompress(base64.b64decode(stored[key])) for key in ("pixels", "labels"))
        shape = (stored["rows"], 1, stored["height"], stored["width"])
    except (OSError, ValueError, KeyError, TypeError, zlib.error, binascii.Error) as error:
        raise DataError(f"cannot read the bundled digits, {source}: {error}; reinstall fedkd") from None
    if hashlib.sha256(pixels + labels).hexdigest() != stored.get("sha256"):
        raise DataError(f"the bundled digits, {source}, do not match their checksum; reinstall fedkd")
    x = np.frombuffer(pixels, np.uint8).reshape(shape).astype(np.float32) / np.float32(16)
    y = np.frombuffer(labels, np.uint8).astype(np.int64)
    whole = _assemble("digits", Part(x, y), None, license=f"{stored['license']} ({stored['authors']})", classes=10)
    return _cut_test(whole, 400)


@dataset
def mnist(*, root: str = ROOT) -> Dataset:
    """MNIST, 60,000 + 10,000 gray images of 28x28 pixels, 10 classes, from its four idx files (plain or .gz).

    They are looked for in ``root``, in ``$FEDKD_DATA_DIR`` and below both as torchvision lays them out.
    """
    return _idx_set("mnist", "MNIST", root)


@dataset
def fashion_mnist(*, root: str = ROOT) -> Dataset:
    """Fashion-MNIST, 60,000 + 10,000 gray images of 28x28 pixels, 10 classes (Xiao et al., arXiv:1708.07747).

    Debian's package ``dataset-fashion-mnist`` is found by itself; otherwise it is looked for as ``mnist`` is.
    """
    return _idx_set("fashion_mnist", "FashionMNIST", root, CLOTHES)


@dataset
def cifar10(*, root: str = ROOT) -> Dataset:
    """CIFAR-10, 50,000 + 10,000 color images of 32x32 pixels, 10 classes, from its Python files (Krizhevsky 2009)."""
    return _cifar("cifar10", "CIFAR10", "cifar-10-batches-py", root)


@dataset
def cifar100(*, root: str = ROOT) -> Dataset:
    """CIFAR-100, 50,000 + 10,000 color images of 32x32 pixels, 100 classes, from its Python files (Krizhevsky 2009)."""
    return _cifar("cifar100", "CIFAR100", "cifar-100-python", root)


@dataset
def torchvision(*, name: str = "MNIST", root: str = ROOT, download: bool = False) -> Dataset:
    """Read MNIST, FashionMNIST, KMNIST, CIFAR10 or CIFAR100 with torchvision, which can also download them."""
    if name not in IMAGE_SETS:
        raise DataError(f"torchvision: name must be one of {', '.join(IMAGE_SETS)}, got {name!r}")
    train, test = data_files.torchvision_set(name, Path(root).expanduser(), download)
    return _assemble(name, train, test, license=IMAGE_SETS[name])


@dataset
def npz(*, path: str) -> Dataset:
    """Your own arrays ``x``, ``y`` and maybe ``x_test``, ``y_test`` in a .npz file; uint8 pixels are divided by 255.

    Other arrays with an entry for each row of ``x`` are columns for ``natural`` partitions. Images may be
    (N, H, W), (N, C, H, W) or (N, H, W, 3). Without ``y`` it can only be a transfer set.
    """
    train, test = data_files.npz_set(Path(path).expanduser())
    return _assemble(Path(path).name, train, test)


@dataset
def folder(*, path: str, size: int = 32, gray: bool = False) -> Dataset:
    """Image files in one sub-folder for each class, maybe below ``train`` and ``test``; resized to ``size`` squared."""
    train, test = data_files.folder_set(Path(path).expanduser(), size, gray)
    return _assemble(Path(path).name, train, test)


@dataset
def parquet(*, path: str, label: str = "label", image: str = "image", test: str | None = None) -> Dataset:
    """Read a Parquet file, or a folder with ``train*.parquet`` and ``test*.parquet``, as the Hugging Face hub has them.

    Inputs are the column ``image`` or, where there is none, all numeric columns but the label. Every plain column
    can serve a ``natural`` partition; the file names inside an image column never do, for they often tell the class.
    """
    second = None if test is None else Path(test).expanduser()
    train, rest = data_files.parquet_set(Path(path).expanduser(), label, image, second)
    return _assemble(Path(path).name, train, rest)


@dataset
def hf(*, name: str, label: str = "label", image: str = "image") -> Dataset:
    """Read a data set of the Hugging Face hub through flwr-datasets; downloads it unless it is in the hub's cache.

    ``name`` may also be a folder written by ``flwr-datasets create`` (one partition of a deployed node).
    """
    train, test = data_files.hub_set(name, label, image)
    return _assemble(name, train, test, license="see its page on the Hugging Face hub")


def _idx_set(name: str, title: str, root: str, class_names: tuple[str, ...] = ()) -> Dataset:
    found = data_files.find_idx(_folders(root, title))
    if found is None:
        looked = f"looked in {root}, ${ROOT_VARIABLE} and {DEBIAN}"
        raise DataError(f"{name} is not on this machine ({looked}): {_remedy(name, 'there')}")
    train, test = data_files.idx_set(found, data_files.IDX_SHA256[name])
    report_name = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}[name]
    return _assemble(report_name, train, test, license=IMAGE_SETS[title], classes=10, class_names=class_names)


def _cifar(name: str, title: str, stored: str, root: str) -> Dataset:
    found = _find_folder(root, stored)
    if found is None:
        looked = f"looked for {stored} in {root} and ${ROOT_VARIABLE}"
        raise DataError(f"{name} is not on this machine ({looked}): {_remedy(name, 'there')}")
    return dataclasses.replace(torchvision(name=title, root=str(found.parent)), name=name.replace("cifar", "CIFAR-"))


def _roots(root: str) -> list[Path]:
    given = os.environ.get(ROOT_VARIABLE)
    return [Path(root).expanduser(), *([Path(given).expanduser()] if given else []), Path(DEBIAN)]


def _folders(root: str, title: str) -> list[Path]:
    below = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist"}[title]
    # Both sets use the same four file names: their own folders come first, and checksums tell them apart.
    return [one for top in _roots(root) for one in (top / title / "raw", top / below, top)]


def _find_folder(root: str, name: str) -> Path | None:
    return next((top / name for top in _roots(root) if (top / name).is_dir()), None)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _assemble(
    name: str,
    train: Part,
    test: Part | None,
    *,
    license: str = UNSTATED,
    classes: int = 0,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Turn what was read into a :class:`Dataset`; names in either part decide the class numbers of both."""
    x, columns = train.x, dict(train.columns)
    x_test = x[:0] if test is None else test.x
    if train.y is None:
        nothing = np.empty(0, np.int64)
        return Dataset(name, x, nothing, x[:0], nothing, 0, license, (), columns)
    if test is not None and test.y is None:
        raise DataError(f"{name}: the test part has no labels")
    y_test: Array = train.y[:0] if test is None or test.y is None else test.y
    names = train.class_names or class_names
    if train.y.dtype.kind == "U":
        names = tuple(str(one) for one in distinct(np.concatenate([train.y, y_test.astype(str)])))
    y = _class_numbers(train.y, names, f"{name}: labels")
    y_test = _class_numbers(y_test, names, f"{name}: test labels")
    known = classes or len(names) or int(max(y.max(initial=-1), y_test.max(initial=-1))) + 1
    return Dataset(name, x, y, x_test, y_test, known, license, names, columns)


def _class_numbers(labels: Array, names: tuple[str, ...], what: str) -> Array:
    """Return ``labels`` (N,) as int64 class numbers; text is looked up in ``names``."""
    if labels.ndim != 1:
        raise DataError(f"{what} must have shape (N,), got {labels.shape}")
    if labels.dtype.kind == "U":
        strange = sorted(set(labels.tolist()) - set(names))
        if strange:
            raise DataError(f"{what}: unknown class {strange[0]!r}; known: {_listed(names)}")
        order = np.argsort(np.array(names))
        return np.asarray(order[np.searchsorted(np.array(names)[order], labels)], np.int64)
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.floor(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iub":
        raise DataError(f"{what} must be class numbers or names, got {labels.dtype} such as {labels[:1].tolist()}")
    return labels.astype(np.int64)


def _warn_of_odd_labels(data: Dataset) -> None:
    """Warn where labels do not look like classes 0, 1, 2, ...: unused numbers become outputs that nothing teaches.

    No error: a sample of data with many classes may lack some. A client's own file is not looked at.
    """
    seen = distinct(np.concatenate([data.y, data.y_test]))
    if len(seen) == 1:
        warnings.warn(f"{data.name}: all labels are {seen[0]}: one class alone is nothing to learn", stacklevel=2)
    elif len(seen) < data.classes:
        lacking = [c for c in range(data.classes) if c not in set(seen.tolist())]
        one = f"class {data.class_names[lacking[0]] if data.class_names else lacking[0]} has"
        unused = f"{len(lacking)} of {data.classes} classes have" if len(lacking) > 1 else one
        hint = "; number the classes 0, 1, 2, ... or name them as text" if not data.class_names else ""
        warnings.warn(f"{data.name}: {unused} no row{hint}", stacklevel=2)


def _checked(data: Dataset, spec: str) -> Dataset:
    """Return ``data`` if it makes sense; raise a :class:`DataError` of one line otherwise."""
    if len(data.x) == 0:
        raise DataError(f"data {spec!r} is empty")
    for what, x, y in (("", data.x, data.y), ("test ", data.x_test, data.y_test)):
        if x.ndim < 2 or x.dtype not in (np.uint8, np.float32):
            raise DataError(f"data {spec!r}: {what}inputs must be numbers (N, ...), got {x.dtype} {x.shape}")
        if x.shape[1:] != data.x.shape[1:]:
            raise DataError(f"data {spec!r}: a test row has shape {x.shape[1:]}, a train row {data.x.shape[1:]}")
        if x.dtype == np.float32 and not np.isfinite(x).all():
            bad = int((~np.isfinite(x).reshape(len(x), -1)).any(axis=1).sum())
            raise DataError(f"data {spec!r}: {what}inputs have NaN or infinity in {bad} of {len(x)} rows")
        if data.classes and len(x) != len(y):
            raise DataError(f"data {spec!r}: {len(x)} {what}inputs but {len(y)} labels")
        if len(y) and not 0 <= y.min() <= y.max() < min(data.classes, 100_000):
            wrong = int(y.min() if y.min() < 0 else y.max())
            last = min(max(data.classes - 1, 0), 99_999)
            right = "0 or above" if wrong < 0 else f"in 0 .. {last}"
            raise DataError(f"data {spec!r}: {what}labels must be {right}, got {wrong}; is this column a class?")
    _same_length(data.columns, len(data.x), spec)
    return data


def _same_length(columns: Mapping[str, Any], rows: int, spec: str) -> None:
    for name, column in columns.items():
        if len(column) != rows:
            raise DataError(f"data {spec!r}: column {name!r} has {len(column)} entries for {rows} rows")


def _cut_test(data: Dataset, size: int) -> Dataset:
    """Move ``size`` rows to the test part: classes in proportion, drawn with a fixed seed, so alike for everyone."""
    if len(data.x) < 2:
        raise DataError(f"{data.name} needs at least 2 rows to cut a test part from, got {len(data.x)}")
    held = np.zeros(len(data.x), bool)
    held[stratified(data.y, max(1, size), generator(0, "test part"))] = True
    return dataclasses.replace(
        data,
        x=data.x[~held],
        y=data.y[~held],
        x_test=data.x[held],
        y_test=data.y[held],
        columns={name: column[~held] for name, column in data.columns.items()},
    )


def stratified(y: Array, size: int, rng: np.random.Generator) -> Array:
    """Return ``size`` sorted rows of ``y`` (N,), each class in proportion; a class of one row keeps it.

    A row's rank within its class, as a share of the class, is a stratified order: its head is the draw.
    """
    order = np.argsort(rng.random(len(y)), kind="stable")
    place = np.empty(len(y))
    for label in distinct(y):
        rows = order[y[order] == label]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.sort(order[np.argsort(place[order], kind="stable")][:size])
