"""Golden vectors for clients that are not Python, a phone first of all; run as a script, this writes them anew.

Whoever speaks for a client in another language checks itself against ``tests/vectors/phone.json``: frames to the byte,
features, distances, weights and evidence, privacy costs, what a small network says. Arrays are base64, little-endian.
"""

import base64
import json
from pathlib import Path

import numpy as np
import torch

from fedkd.codec import encode_query, encode_release, remember_feedback
from fedkd.config import Config
from fedkd.dataset import as_inputs, fingerprint, load
from fedkd.events import NonPrivate, NoOp, SampledGaussian
from fedkd.evidence import beside, evidence
from fedkd.expertise import expertise, weigh
from fedkd.expertise.space import around, nearest, sample, space
from fedkd.features import shapes
from fedkd.learner import Training
from fedkd.learner.models import build
from fedkd.learner.torch_learner import TorchLearner
from fedkd.losses import distill_loss
from fedkd.privacy import rdp
from fedkd.privacy.calibrate import noise_multiplier
from fedkd.random import derive, generator
from fedkd.records import Query, Release, Teacher, TransferSet
from fedkd.release import prepare

PATH = Path(__file__).parent / "vectors" / "phone.json"
PUBLIC, PRIVATE, CLASSES = 200, 100, 10
CHAINS = ("float32", "float16", "argmax", "quantize(bits=1)", "quantize(bits=8)", "float16 | weights",
          "quantize(bits=3) | weights(bits=5)", "argmax | weights(bits=2)")  # fmt: skip
CLIENT = 0xFEDC_BA98_7654_3210
BUDGETS = ((3.0, 1e-5, 0.1, 50), (8.0, 1e-5, 1.0, 20), (1.0, 1e-6, 0.25, 8))


def packed(array, kind="<f4"):
    array = np.ascontiguousarray(array, kind)
    return {"shape": list(array.shape), "type": kind, "data": base64.b64encode(array.tobytes()).decode()}


def digits():
    """Return levels (n, 8, 8) in 0..16 of public and private digits, and the labels of the private ones."""
    data = load("digits")
    levels = np.rint(as_inputs(data.x)[:, 0] * 16).astype(np.uint8)
    mine = slice(PUBLIC, PUBLIC + PRIVATE)
    return levels[:PUBLIC], levels[mine], data.y[mine]


def sizes(levels):
    """Return the inputs that are made of levels (n, 8, 8): as rows, as images, and as images of 28 x 28 pixels."""
    small = levels.astype(np.float32) / 16
    large = np.zeros((len(levels), 28, 28), np.float32)
    large[:, 2:26, 2:26] = small.repeat(3, axis=1).repeat(3, axis=2)
    return {"rows": small.reshape(-1, 64), "small": small[:, None], "large": large[:, None]}


def soft_labels(rows, classes=CLASSES, seed=0):
    rng = generator(seed, "phone vectors", rows, classes)
    return rng.dirichlet(np.full(classes, 0.4), rows).astype(np.float32)


def queries():
    sha = fingerprint(np.zeros((40, 2), np.float32))
    some = np.array([0, 3, 4, 17, 39])
    p = prepare("quantize(bits=5)", Release(soft_labels(7, 3), np.ones(7)), generator(0, "q")).p
    back = Teacher(p, np.array([1, 2, 5, 20, 21, 30, 38]))
    hard = Teacher(np.eye(3, dtype=np.float32)[np.arange(7) % 3], back.indices)
    half = Teacher(prepare("float16", Release(soft_labels(40, 3), np.ones(40)), generator(0, "q")).p, np.arange(40))
    told = [
        ("all rows", np.arange(40), None, "float16"),
        ("few rows", some, None, "float16"),
        ("no rows", some[:0], None, "float16"),
        ("a bitmap", np.arange(0, 40, 2), None, "float16"),
        ("float16 on all rows", some, half, "float16"),
        ("float32 on all rows", some, half, "float32"),
        ("five bits on some rows", np.arange(40), back, "grid5"),
        ("labels", np.arange(40), hard, "label"),
    ]
    for name, rows, feedback, encoding in told:
        query = Query(3, rows, 3, sha, feedback)
        frame = encode_query(query, 40, encoding)
        said = None if feedback is None else {"rows": feedback.indices.tolist(), "p": packed(feedback.p)}
        yield {"name": name, "frame": frame.hex(), "round": 3, "rows": rows.tolist(), "feedback": said}
    flat = Teacher(np.full((40, 3), 1 / 3, np.float32), np.arange(40))  # worth compressing
    known = remember_feedback(None, Query(2, some, 3, sha, back), "grid5", 40)
    for coding, feedback, encoding in (
        ("range_code", back, "grid5"),
        ("zstd", flat, "float32"),
        ("delta", back, "grid5"),
    ):
        frame = encode_query(Query(3, some, 3, sha, feedback), 40, encoding, coding=[coding], known=known)
        yield {"name": f"refused: {coding}", "frame": frame.hex(), "refused": "set broadcast = 'float16'"}


def releases():
    sha = fingerprint(np.zeros((40, 2), np.float32))
    for i, chain in enumerate(CHAINS):
        rng = generator(i, "phone vectors", "weights")
        w = np.exp(rng.normal(0, 8, 9)).astype(np.float32) if "weights" in chain else np.ones(9, np.float32)
        w[3] = 0 if "weights" in chain else 1
        event = (NonPrivate(), NoOp(), SampledGaussian(0.1, 1.25, 50))[i % 3]
        raw = Release(soft_labels(9, 7, seed=i), w, event)
        made = prepare(chain, raw, rng)
        query = Query(2, np.arange(9), 7, sha)
        yield {
            "chain": chain, "round": 2, "p": packed(raw.p), "w": packed(raw.w), "released": packed(made.p),
            "weights": packed(made.w), "event": type(event).__name__,
            "frame": encode_release(made, query, CLIENT).hex(),
        }  # fmt: skip
    for name, w in (("equal weights", np.full(9, 0.3, np.float32)), ("a weight each", np.arange(9, dtype=np.float32))):
        release = Release(soft_labels(9, 7), w)
        frame = encode_release(release, Query(2, np.arange(9), 7, sha), CLIENT).hex()
        yield {
            "chain": "float32", "name": name, "round": 2, "p": packed(release.p), "w": packed(w), "released":
            packed(release.p), "weights": packed(w), "event": "NonPrivate", "frame": frame,
        }  # fmt: skip


def neighborhoods():
    """Return what expertise and evidence say of private digits around public ones, on each size of the inputs."""
    public, private, y = digits()
    for name, x in sizes(public).items():
        mine, kept = sizes(private)[name], TransferSet(x, name)
        where, project = space(kept, 80)
        theirs = around(where, (name, 80, "space"), 5)
        every, rng = np.arange(PUBLIC), generator(0, "unused")
        w = weigh("density", soft_labels(PUBLIC), every, kept, mine, rng).w
        few = weigh("density(neighbors=3, dimensions=20)", soft_labels(PUBLIC), every, kept, mine[:2], rng).w
        e = evidence.build("neighbors")(kept, mine[:60], y[:60], CLASSES)
        yield name, {
            "distances": packed(nearest(where, project(mine), 5)), "log_r": packed(theirs.log_r),
            "dimension": theirs.dimension, "density": packed(w), "density of two": packed(few), "evidence": packed(e),
        }  # fmt: skip


def plain_members():
    p = soft_labels(6, 5)
    for spec in ("uniform", "confidence", "confidence(power=2.5)", "entropy", "entropy(floor=0.1)"):
        yield spec, packed(expertise.build(spec)(p, np.arange(6), None, None, None))


def losses():
    z = torch.tensor(generator(0, "z").normal(0, 2, (5, 4)).astype(np.float32))
    p = torch.tensor(soft_labels(5, 4))
    p[0] = torch.tensor([1.0, 0, 0, 0])
    for spec in ("kl", "kl(temperature=3.0)", "kl(temperature=2.0, hard=0.25, smoothing=0.1)", "kl(hard=1.0)",
                 "cross_entropy", "hard", "mae", "logit_matching"):  # fmt: skip
        given = z.clone().requires_grad_()
        value = distill_loss.build(spec)(given, p)
        value.sum().backward()
        yield {
            "spec": spec,
            "z": packed(z),
            "p": packed(p),
            "loss": packed(value.detach()),
            "slope": packed(given.grad),
        }


def networks():
    for kind, shape, options in (("cnn", (1, 9, 8), {"width": 2, "hidden": 5}), ("mlp", (3, 4), {"hidden": 6}),
                                 ("cnn", (3, 4, 4), {"width": 3, "hidden": 4})):  # fmt: skip
        torch.manual_seed(1)
        network = build(kind, shape, 4, **options)
        theta = np.concatenate([w.detach().numpy().ravel() for w in network.parameters()])
        x = generator(0, "x", kind).normal(0, 1, (3, *shape)).astype(np.float32)
        with torch.no_grad():
            z = network(torch.from_numpy(x))
        yield {"kind": kind, "shape": list(shape), **options, "theta": packed(theta), "x": packed(x), "z": packed(z)}


def training():
    """Return weights before and after ten passes over one batch, so that nothing depends on the order of examples."""
    torch.manual_seed(2)
    network = build("cnn", (1, 9, 8), 4, width=2, hidden=5)
    before = np.concatenate([w.detach().numpy().ravel() for w in network.parameters()])
    rng = generator(0, "training")
    x, y = rng.normal(0, 1, (12, 1, 9, 8)).astype(np.float32), np.arange(12) % 4
    learner = TorchLearner(network, Training(epochs=10, batch_size=12, learning_rate=0.01, schedule="linear"), "cnn")
    learner.fit(x, y, rng=rng)
    after = np.concatenate([w.detach().numpy().ravel() for w in network.parameters()])
    return {"x": packed(x), "labels": y.tolist(), "before": packed(before), "after": packed(after)}


def costs():
    for epsilon, delta, rate, count in BUDGETS:
        noise = noise_multiplier(epsilon, delta, lambda z, n=count, q=rate: [SampledGaussian(q, z, n)], method="rdp")
        tight = noise_multiplier(epsilon, delta, lambda z, n=count, q=rate: [SampledGaussian(q, z, n)])
        cost = rdp.rdp(SampledGaussian(rate, 1.5, count))
        yield {
            "epsilon": epsilon, "delta": delta, "rate": rate, "count": count, "noise": noise, "tight": tight,
            "rdp at 1.5": cost.tolist(), "epsilon at 1.5": rdp.epsilon_of(cost, delta),
        }  # fmt: skip


def vectors():
    """Return all that the file holds."""
    public, private, y = digits()
    p = soft_labels(8, 4)
    p[1] = [0, 0.5, 0.5, 0]
    e = generator(0, "e").normal(0, 5, (8, 4)).astype(np.float32)
    return {
        "version": 2,
        "config": {key: value for key, value in Config().to_run_config().items()},
        "client": str(CLIENT),
        "fingerprint": fingerprint(np.zeros((40, 2), np.float32)),
        "queries": list(queries()),
        "releases": list(releases()),
        "sample": {"rows": 2000, "most": 1000, "first": sample(2000, 1000)[:40].tolist()},
        "uniforms": {"seed": str(derive(7, "any", 3)), "drawn": generator(7, "any", 3).random(5).tolist()},
        "public": packed(public, "|u1"),
        "private": packed(private, "|u1"),
        "labels": y.tolist(),
        "shapes": {name: packed(shapes(x[:6])) for name, x in sizes(public).items() if name != "rows"}
        | {"color": packed(shapes(np.stack([sizes(public)["large"][k : k + 4, 0] for k in range(3)], axis=1)))},
        "neighborhoods": dict(neighborhoods()),
        "plain": {"p": packed(soft_labels(6, 5)), "members": dict(plain_members())},
        "beside": {"p": packed(p), "e": packed(e), "ballots": packed(beside(p, e))},
        "losses": list(losses()),
        "networks": list(networks()),
        "training": training(),
        "costs": list(costs()),
        "fingerprints": {name: fingerprint(x) for name, x in sizes(public).items()},
    }


def write():
    body = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in vectors().items())
    PATH.write_text("{\n" + body + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
