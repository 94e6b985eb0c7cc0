"""ONNX models for tests, written field by field: the format is protobuf, and a tiny model needs few of its fields."""

import numpy as np

FLOAT, INT64, DOUBLE = 1, 7, 11


def _varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number, value):
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def node(kind, inputs, output, **whole_numbers):
    """An operator; attributes are whole numbers."""
    attributes = b"".join(
        _field(5, _field(1, name) + _field(3, value) + _field(20, 2)) for name, value in whole_numbers.items()
    )
    return b"".join(_field(1, one) for one in inputs) + _field(2, output) + _field(4, kind) + attributes


def value(name, shape, kind=FLOAT):
    """What goes in or out: a dimension is a number, or a name for any."""
    dims = b"".join(_field(1, _field(1, d) if isinstance(d, int) else _field(2, d)) for d in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def tensor(name, array):
    """Weights."""
    dims = b"".join(_field(1, d) for d in array.shape)
    return dims + _field(2, FLOAT) + _field(8, name) + _field(9, array.astype("<f4").tobytes())


def model(nodes, inputs, outputs, weights=None):
    """The bytes of a model."""
    graph = b"".join(_field(1, one) for one in nodes) + _field(2, "test")
    graph += b"".join(_field(5, tensor(name, array)) for name, array in (weights or {}).items())
    graph += b"".join(_field(11, one) for one in inputs) + b"".join(_field(12, one) for one in outputs)
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 17))


def bands(shape=(1, 8, 8), classes=3, batch="N"):
    """A network with outputs "hidden" (n, D), rectified sums over horizontal bands, and "scores" (n, classes).

    The images of ``test_learner`` are bright in the band that tells their class, so scores are already right.
    """
    size = int(np.prod(shape))
    rows = np.arange(size) // shape[-1] % shape[-2]  # channels first
    third = shape[-2] // classes
    matrix = np.stack([(rows // third == c).astype(np.float32) for c in range(classes)], axis=1)
    nodes = [
        node("Flatten", ["x"], "flat", axis=1),
        node("MatMul", ["flat", "bands"], "sums"),
        node("Relu", ["sums"], "hidden"),
        node("Add", ["hidden", "bias"], "scores"),
    ]
    return model(
        nodes,
        [value("x", (batch, *shape))],
        [value("hidden", (batch, classes)), value("scores", (batch, classes))],
        {"bands": matrix, "bias": np.zeros(classes, np.float32)},
    )
