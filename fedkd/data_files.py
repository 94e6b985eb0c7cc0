"""Readers of the files that data sets come in. Optional packages are imported where they are needed and not before.

Each returns a train :class:`Part` and a test one or None. Whatever is wrong with a file is one line of DataError.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.errors import DataError, ExtraError
from fedkd.softlabels import Array

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_SHA256 = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion_mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
"""SHA-256 of the four files in the order of IDX_FILES, uncompressed."""
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True, eq=False)
class Part:
    """Rows as they were read: inputs, labels (numbers or names) or None, and what else is known of each row."""

    x: Array
    y: Array | None
    class_names: tuple[str, ...] = ()
    columns: dict[str, Array] = field(default_factory=dict)


Parts = tuple[Part, Part | None]


# The idx format of MNIST.


def find_idx(folders: Iterable[Path]) -> Path | None:
    """Return the first folder that holds the four idx files, plain or with ``.gz``."""
    return next((top for top in folders if all(_idx_file(top, name) for name in IDX_FILES)), None)


def _idx_file(top: Path, name: str) -> Path | None:
    return next((one for end in ("", ".gz") if (one := top / (name + end)).is_file()), None)


def idx_set(top: Path, digests: Sequence[str]) -> Parts:
    """Read the four idx files in ``top``; refuse any whose SHA-256 is not the known one."""
    arrays = []
    for name, digest in zip(IDX_FILES, digests, strict=True):
        source = _idx_file(top, name)
        if source is None:
            raise DataError(f"{top / name} is missing")
        content = _idx_bytes(source)
        if hashlib.sha256(content).hexdigest() != digest:
            raise DataError(f"{source} does not match its checksum: damaged, or another data set")
        arrays.append(idx(content, str(source)))
    x, y, x_test, y_test = arrays
    return Part(x[:, None], y), Part(x_test[:, None], y_test)


def _idx_bytes(source: Path) -> bytes:
    try:
        content = source.read_bytes()
        return gzip.decompress(content) if source.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {source}: {error}") from None


def idx(content: bytes, source: str) -> Array:
    """Return the uint8 array of an idx file: 0, 0, type 8, number of axes, their lengths as big-endian int32, bytes."""
    axes = content[3] if len(content) > 3 and content[:3] == b"\x00\x00\x08" else 0
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    start = 4 + 4 * axes
    if not axes or len(content) - start != int(np.prod(shape, dtype=object)):
        raise DataError(f"{source} is not an idx file of bytes, or is cut short")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# torchvision.


def torchvision_set(name: str, root: Path, download: bool) -> Parts:
    """Read both parts of a data set of torchvision (N, C, H, W), uint8; the network is used only with ``download``."""
    try:
        from torchvision import datasets
    except ImportError:
        raise ExtraError(f"data set torchvision(name={name!r})", "torchvision", "torch") from None
    parts = []
    for train in (True, False):
        try:
            with warnings.catch_warnings():  # how torchvision reads its old files is not the user's business
                warnings.simplefilter("ignore")
                stored = getattr(datasets, name)(str(root), train=train, download=download)
        except (RuntimeError, OSError, EOFError) as error:
            asked = f"the download failed ({_line(error)})" if download else f"it is not in {root}"
            raise DataError(
                f"cannot read {name} with torchvision: {asked}; put its files there, or set download=True where the "
                "internet can be reached"
            ) from None
        x = np.asarray(stored.data)
        x = x.transpose(0, 3, 1, 2) if x.ndim == 4 else x[:, None]
        names = tuple(str(one).replace("_", " ") for one in stored.classes)
        parts.append(Part(np.ascontiguousarray(x), np.asarray(stored.targets), names))
    return parts[0], parts[1]


# Arrays.


def npz_set(path: Path) -> Parts:
    """Read ``x``, maybe ``y``, ``x_test``, ``y_test``; other arrays of the length of ``x`` are columns. No pickles."""
    try:
        _expect_zip(path)
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name]) for name in stored.files}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a .npz file of plain arrays: {_line(error)}") from None
    if "x" not in arrays:
        raise DataError(f"{path} has no array 'x'; it has {', '.join(sorted(arrays)) or 'nothing'}")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise DataError(f"{path} must have both 'x_test' and 'y_test', or neither")
    x, y = as_rows(arrays["x"], f"{path}: x"), arrays.get("y")
    rest = {name: a for name, a in arrays.items() if name not in ("x", "y", "x_test", "y_test")}
    columns = {name: a for name, a in rest.items() if a.ndim == 1 and len(a) == len(x)}
    if y is not None and y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    train = Part(x, y, columns=columns)
    if y is None or "x_test" not in arrays:
        return train, None
    return train, Part(as_rows(arrays["x_test"], f"{path}: x_test"), arrays["y_test"].reshape(-1))


def _expect_zip(path: Path) -> None:
    """Say what ``path`` is, in our words, where it is no .npz file at all; numpy would speak of pickles."""
    with open(path, "rb") as stream:
        head = stream.read(6)
    if head.startswith(b"PK"):
        return
    kind = "a .npy file, one bare array" if head == b"\x93NUMPY" else "something else"
    raise DataError(
        f"{path} is not a .npz file but {kind}; write one with numpy.savez({path.stem + '.npz'!r}, x=x, y=y)"
    )


def _channels_last(x: Array) -> bool:
    """Whether (N, a, b, c) reads as color or gray images with channels last; c = 4 (with alpha) only for bytes."""
    last = (1, 3, 4) if x.dtype == np.uint8 else (1, 3)
    return x.shape[3] in last and x.shape[1] not in (1, 3, x.shape[3])


def as_rows(x: Array, what: str) -> Array:
    """Return ``x`` as uint8 or float32 rows, images channels first: (N, H, W) gets C = 1, channels last are turned."""
    if x.ndim < 2 or x.dtype.kind not in "iufb":
        raise DataError(f"{what} must be numbers of shape (N, d), (N, H, W) or (N, C, H, W), got {x.dtype} {x.shape}")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and _channels_last(x):
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and that is refused later
        return x if x.dtype == np.uint8 else x.astype(np.float32)


# Folders of images.


def folder_set(path: Path, size: int, gray: bool) -> Parts:
    """Read image files below one sub-folder for each class, or below ``train`` and ``test`` folders of these."""
    if size < 1:
        raise DataError(f"folder: size must be at least 1 pixel, got {size}")
    if not path.is_dir():
        raise DataError(f"{path} is not a folder")
    if not (path / "train").is_dir():
        return _class_folders(path, size, gray), None
    test = path / "test"
    return _class_folders(path / "train", size, gray), _class_folders(test, size, gray) if test.is_dir() else None


def _class_folders(top: Path, size: int, gray: bool) -> Part:
    names = sorted(one.name for one in top.iterdir() if one.is_dir() and not one.name.startswith("."))
    files = [
        (file, name)
        for name in names
        for file in sorted((top / name).rglob("*"))
        if file.suffix.lower() in IMAGE_ENDINGS and file.is_file()
    ]
    bare = [name for name in names if name not in {owner for _, owner in files}]
    if not files or bare:
        empty = f"{top / bare[0]} holds no images" if bare else f"{top} holds no sub-folders with images"
        raise DataError(f"{empty}; a folder data set has one sub-folder for each class")
    mode = "L" if gray else "RGB"
    x = np.stack([_decode(file, mode, str(file), size) for file, _ in files])
    return Part(x, np.array([name for _, name in files]))


def _decode(file: Path | io.BytesIO, mode: str | None, what: str, size: int | None = None) -> Array:
    """Return an image as uint8 (C, H, W); without ``mode``, gray stays gray and all else is made RGB."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ExtraError("reading images", "pillow", "torch") from None
    try:
        with Image.open(file) as image:
            kind = mode or ("L" if image.mode in ("1", "L") else "RGB")
            pixels = image.convert(kind)
            if size is not None and pixels.size != (size, size):
                pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
            a = np.asarray(pixels)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{what} is not a readable image: {_line(error)}") from None
    return a[None] if a.ndim == 2 else np.ascontiguousarray(a.transpose(2, 0, 1))


# Tables.


def parquet_set(path: Path, label: str, image: str, test: Path | None) -> Parts:
    """Read one Parquet file, or the ``train*`` and ``test*`` files of a folder; ``test`` names a test file."""
    if not path.exists():
        raise DataError(f"{path} does not exist")
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ExtraError("data set parquet", "pyarrow", "hub") from None

    def table(files: list[Path]) -> Any:
        try:
            return pa.concat_tables([pq.read_table(file) for file in files])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot read {files[0]} as Parquet: {_line(error)}") from None

    train_files, test_files = [path], [] if test is None else [test]
    if path.is_dir():
        train_files = sorted(path.glob("train*.parquet"))
        test_files = test_files or sorted(path.glob("test*.parquet"))
        if not train_files:
            raise DataError(f"{path} holds no file train*.parquet")
    train = table_part(table(train_files), label, image, str(path))
    if not test_files:
        return train, None
    return train, table_part(table(test_files), label, image, str(test_files[0]))


def hub_set(name: str, label: str, image: str) -> Parts:
    """Read the splits ``train`` and, where there is one, ``test`` of the hub's ``name``, or what save_to_disk wrote."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # flwr-datasets reads it when it is imported
    try:
        from datasets import load_from_disk
        from flwr_datasets import FederatedDataset
    except ImportError:
        raise ExtraError(f"data set hf(name={name!r})", "flwr-datasets", "hub") from None
    # FederatedDataset would read the first file of a folder that save_to_disk wrote as a table of one row.
    saved = (Path(name) / "state.json").is_file()

    def part(split: str) -> Part:
        rows = (
            load_from_disk(name)
            if saved
            else FederatedDataset(dataset=name, partitioners={"train": 1}, shuffle=False).load_split(split)
        )
        return table_part(rows.with_format("arrow")[:], label, image, f"{name}, {split}")

    try:
        train = part("train")
    except (OSError, ValueError, KeyError) as error:  # ConnectionError and the hub's "not found" are OSErrors
        raise DataError(
            f"cannot load {name!r} from the Hugging Face hub: {_line(error)}. Without the internet use 'digits', "
            "'fashion_mnist', 'npz:PATH', 'folder:PATH' or 'parquet:PATH'"
        ) from None
    try:
        return train, None if saved else part("test")
    except (ValueError, KeyError):  # no such split: a test part is cut from train
        return train, None


def table_part(table: Any, label: str, image: str, what: str) -> Part:
    """Return the rows of an Arrow table. Of an image column only pixels are read, never the ``path`` beside them."""
    columns = {name: _column(table, name) for name in table.column_names if name not in (label, image)}
    plain = {name: column for name, column in columns.items() if column is not None}
    y = None
    if label in table.column_names:
        y = _column(table, label)
        if y is None or table.column(label).null_count:
            raise DataError(f"{what}: the label column {label!r} must be numbers or text without gaps")
    if image in table.column_names:
        return Part(_images(table.column(image), what), y, _hub_names(table.schema, label), plain)
    numeric = [name for name, column in plain.items() if column.dtype.kind in "iufb"]
    if not numeric:
        raise DataError(f"{what} has neither an image column {image!r} nor numeric columns; it has {_names(table)}")
    x = np.stack([plain[name].astype(np.float32) for name in numeric], axis=1)
    return Part(x, y, _hub_names(table.schema, label), plain)


def _column(table: Any, name: str) -> Array | None:
    """Return a plain column (N,): numbers, or text with gaps left empty; None for lists, images and the like."""
    import pyarrow as pa

    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return None
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.asarray(column.to_numpy())
    if pa.types.is_boolean(kind):
        return np.array(column.cast(pa.uint8()).to_numpy())
    return np.array(["" if value is None else str(value) for value in column.to_pylist()], dtype=np.str_)


def _images(column: Any, what: str) -> Array:
    """Return encoded images, or nested lists of numbers, as rows."""
    import pyarrow as pa

    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], column.type.field("bytes").type)
    if column.null_count:
        raise DataError(f"{what}: {column.null_count} of {len(column)} images are missing (only file names are stored)")
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        mode: str | None = None
        rows: list[Array] = []
        for row, content in enumerate(column):
            a = _decode(io.BytesIO(content.as_py()), mode, f"{what}: image {row}")
            mode = mode or ("L" if a.shape[0] == 1 else "RGB")  # the first image decides for all
            if rows and a.shape != rows[0].shape:
                raise DataError(f"{what}: images differ in size, {rows[0].shape[1:]} and {a.shape[1:]} at row {row}")
            rows.append(a)
        if not rows:
            raise DataError(f"{what} is empty")
        return np.stack(rows)
    try:
        return as_rows(np.array(column.to_pylist()), f"{what}: images")
    except ValueError:
        raise DataError(f"{what}: images must be encoded bytes or arrays of one shape, got {column.type}") from None


def _hub_names(schema: Any, label: str) -> tuple[str, ...]:
    """Return the class names that the Hugging Face hub stores in a table's metadata, if any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _names(table: Any) -> str:
    return ", ".join(table.column_names) or "no columns"


def _line(error: BaseException) -> str:
    """Return the first line of a foreign error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
