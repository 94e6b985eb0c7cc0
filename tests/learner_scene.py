"""Images that can be learned, and learners made from a spec."""

from pathlib import Path

import numpy as np

from fedkd.learner import Training

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 3
TRAINING = Training(epochs=30, distill_epochs=30, batch_size=16, learning_rate=1e-2)


def images(n, shape, seed=0, labels=None):
    """Bright rows at a height that tells the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n) if labels is None else np.asarray(labels)
    x = rng.uniform(0, 0.3, (len(y), *shape)).astype(np.float32)
    third = shape[1] // CLASSES
    for i, label in enumerate(y):
        x[i, :, label * third : (label + 1) * third] += 0.6
    return x, y.astype(np.int64)


def one_hot(y):
    return np.eye(CLASSES, dtype=np.float32)[y]
