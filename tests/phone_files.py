"""Files as Python writes them, for readers that are not Python: ``python tests/phone_files.py`` writes them anew."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fedkd.dataset import fingerprint

PATH = Path(__file__).parent / "vectors" / "phone_files.json"


def _npz(write, arrays):
    stream = io.BytesIO()
    write(stream, **arrays)
    return stream.getvalue()


def vectors():
    """Return the content of small files, and the arrays that are in them."""
    pixels = np.array([[0, 51, 102, 153], [204, 255, 0, 255]], np.uint8).reshape(2, 1, 2, 2)
    plain = {"x": pixels, "y": np.array([0, 2])}
    kinds = {
        name: np.array([0, 1, 100]).astype(name)
        for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
    }
    kinds["scalar"] = np.array(-1.5, np.float32)
    small = {"x": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4), "y": np.array([1, 2])}
    files = {
        "stored.npz": (_npz(np.savez, plain), plain),
        "deflated.npz": (_npz(np.savez_compressed, plain), plain),
        "kinds.npz": (_npz(np.savez, kinds), kinds),
        "plain.safetensors": (save(small), small),
    }
    found = {
        name: {
            "base64": base64.b64encode(content).decode(),
            "arrays": {key: {"shape": list(a.shape), "values": a.reshape(-1).tolist()} for key, a in arrays.items()},
        }
        for name, (content, arrays) in files.items()
    }
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 1, 2, 2)
    return found | {"transfer": {"base64": base64.b64encode(save({"x": x})).decode(), "fingerprint": fingerprint(x)}}


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
