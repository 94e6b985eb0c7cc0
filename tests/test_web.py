"""The phone's half in TypeScript: its own tests in node, and what Python makes of what it says."""

import base64
import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import phone_vectors
import pytest

from fedkd.aggregation import aggregator
from fedkd.codec import decode_release, encode_query
from fedkd.config import Config
from fedkd.events import NonPrivate, SampledGaussian
from fedkd.federation import federation
from fedkd.privacy.chain import parse
from fedkd.privacy.ledger import Account
from fedkd.protect import demand, spending
from fedkd.records import Query, Teacher

ROOT = Path(__file__).resolve().parent.parent
WEB, PAGE = ROOT / "clients" / "web", ROOT / "fedkd" / "serving" / "page"
NODE, NPM = shutil.which("node"), shutil.which("npm")

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


def run(command, *, cwd=WEB, stdin=None, **environment):
    done = subprocess.run(
        command, cwd=cwd, input=stdin, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout[-4000:]}{done.stderr[-2000:]}"
    return done.stdout


def in_node(*arguments, stdin=None, **environment):
    return run([NODE, *arguments], stdin=stdin, **environment)


def array(x, kind):
    return base64.b64encode(np.ascontiguousarray(x, kind).tobytes()).decode()


def ask(config, query, shared, keys):
    """Return what phones ``keys`` of a simulated federation answer to ``query``, computed in node."""
    told = {
        "config": config.to_run_config(),
        "query": encode_query(query, len(shared.transfer), "float16").hex(),
        "classes": shared.dataset.classes,
        "shape": list(shared.transfer.inputs.shape[1:]),
        "transfer": array(shared.transfer.inputs, "<f4"),
        "fingerprint": shared.transfer.fingerprint,
        "phones": [],
    }
    for key in keys:
        x, y = shared.private(key)
        told["phones"].append({"key": str(key), "x": array(x, "<f4"), "y": array(y, "<i4")})
    return json.loads(in_node("test/phones.mjs", stdin=json.dumps(told)))


def setting(**given):
    config = Config(**{"clients": 3, "learner": "cnn", **given})
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    rows = np.arange(len(shared.transfer))
    return config, shared, Query(1, rows, shared.dataset.classes, shared.transfer.fingerprint)


def differ(one, other, where=""):
    """Yield where two things of the vectors differ, floats by more than another processor may round."""
    if isinstance(one, dict) and one.keys() == {"shape", "type", "data"}:
        if one["type"] == "|u1" or one["shape"] != other["shape"]:
            yield from () if one == other else [where]
            return
        mine, theirs = (np.frombuffer(base64.b64decode(each["data"]), each["type"]) for each in (one, other))
        if not np.allclose(mine, theirs, rtol=1e-3, atol=1e-5):
            yield where
    elif isinstance(one, dict | list):
        pairs = one.items() if isinstance(one, dict) else enumerate(one)
        if len(one) != len(other):
            yield where
        for key, each in pairs:
            yield from differ(each, other[key], f"{where}/{key}")
    elif isinstance(one, float):
        yield from () if np.isclose(one, other, rtol=1e-3, atol=1e-9) else [where]
    elif one != other:
        yield where


def test_the_vectors_are_what_todays_code_writes():
    written = json.loads(phone_vectors.PATH.read_text(encoding="utf-8"))
    assert list(differ(written, phone_vectors.vectors())) == []


@needs_node
@pytest.mark.slow
def test_the_phones_own_tests_pass_in_node():
    tests = sorted(str(path) for path in (WEB / "test").glob("*.test.mjs"))
    told = in_node("--test", *tests)
    assert "# fail 0" in told
    assert int(told.split("# pass ")[1].split()[0]) >= 80


@needs_node
@pytest.mark.slow
def test_the_committed_bundle_is_what_the_sources_make(tmp_path):
    if NPM is None:
        pytest.skip("npm is not installed")
    shutil.copy(WEB / "package.json", tmp_path)
    install = [NPM, "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install the tools: {done.stderr[-300:]}")
    for name in ("tsconfig.json", "build.mjs"):
        shutil.copy(WEB / name, tmp_path)
    for name in ("src", "page"):
        shutil.copytree(WEB / name, tmp_path / name)  # a link would be followed, and the bundle name where it leads
    run([tmp_path / "node_modules" / ".bin" / "tsc", "--noEmit"], cwd=tmp_path)
    in_node(tmp_path / "build.mjs", tmp_path / "built")
    built = {path.name: path.read_bytes() for path in (tmp_path / "built").iterdir()}
    assert len(built) >= 9
    for name, content in built.items():
        assert (PAGE / name).read_bytes() == content, f"{name} is not what `npm run build` makes: build it anew"
    assert {path.name for path in PAGE.iterdir()} == set(built), "a file of the page has no source"


@needs_node
@pytest.mark.slow
def test_three_phones_teach_more_than_each_of_them_knows():
    config, shared, query = setting(release="quantize(bits=6) | weights(bits=5)", local_epochs=5)
    told = ask(config, query, shared, range(3))
    assert [one.get("refusal") for one in told] == [None] * 3
    answers = [decode_release(bytes.fromhex(one["frame"]), query) for one in told]
    assert [client for client, _ in answers] == [0, 1, 2]
    assert all(release.event == NonPrivate() and release.weight_bits == 5 for _, release in answers)
    p = np.stack([release.p for _, release in answers])
    w = np.stack([release.w for _, release in answers])
    teacher = aggregator.build("mean")(p, w)
    truth = shared.truth
    alone = [float((ballot.argmax(axis=1) == truth).mean()) for ballot in p]
    together = float((teacher.argmax(axis=1) == truth).mean())
    assert together > max(alone) + 0.02, f"{together} together, {alone} alone"
    assert together > 0.9


@needs_node
@pytest.mark.slow
def test_what_comes_back_is_learned_by_the_next_answer():
    config, shared, query = setting(evidence="none", local_epochs=1, feedback_epochs=10)
    truth = shared.truth
    back = Teacher(np.eye(10, dtype=np.float32)[truth], query.indices)
    taught = Query(2, query.indices, 10, query.fingerprint, back)
    right = []
    for asked in (query, taught):
        (told,) = ask(config, asked, shared, [0])
        _, release = decode_release(bytes.fromhex(told["frame"]), asked)
        right.append(float((release.p.argmax(axis=1) == truth).mean()))
    assert right[1] > right[0] + 0.1 and right[1] > 0.85, right


@needs_node
@pytest.mark.slow
def test_a_private_phone_is_accepted_by_the_server_and_its_ledger_read_by_python():
    config, shared, query = setting(
        rounds=1, learner="linear(dimensions=20, temperature=4.0)", local_epochs=20, expertise="uniform",
        evidence="none", feedback="none", protect="dp_sgd(rate=1.0, clip=0.1, examples=400, step=0.3)", epsilon=3.0,
    )  # fmt: skip
    told = ask(config, query, shared, range(3))
    truth, chance = shared.truth, 0.1
    for one in told:
        client, release = decode_release(bytes.fromhex(one["frame"]), query)
        demand(config, release.event, f"client {client}")  # raises unless the budget covers it
        assert isinstance(release.event, SampledGaussian)
        needed = spending(config).noise_multiplier
        assert needed <= release.event.noise_multiplier < 1.2 * needed
        assert float((release.p.argmax(axis=1) == truth).mean()) > 2 * chance
        lines = "".join(f"{record}\n" for record in one["records"]).encode()
        records = parse(lines)
        assert not records.torn and len(records.bodies) == len(one["records"]) == 5
        account = Account()
        for body in records.bodies:
            account.add(body)
        assert account.spent(run="1")[0] == release.event
        assert (account.budgets[0].epsilon, account.budgets[0].delta) == (3.0, 1e-5)


@needs_node
@pytest.mark.slow
def test_what_a_phone_cannot_do_is_one_line_and_no_frame():
    config, shared, query = setting(release="float16 | zstd")
    (told,) = ask(config, query, shared, [1])
    can = "float32, float16, argmax, quantize and weights"
    assert told["refusal"] == f"release: a phone cannot do 'zstd', only {can}; set release = 'float16'"
    assert "frame" not in told and len(told["records"]) == 1


def test_all_that_the_page_links_to_is_there_in_the_size_that_is_said():
    linked = re.findall(r'(?:href|src)="([^"]+)"', (PAGE / "index.html").read_text())
    icons = json.loads((PAGE / "manifest.webmanifest").read_text())["icons"]
    shell = re.findall(r'"/([\w.-]+)"', (PAGE / "sw.js").read_text())
    assert {*linked, *shell, *(icon["src"] for icon in icons)} <= {path.name for path in PAGE.iterdir()}
    sizes = {icon["src"]: icon["sizes"] for icon in icons if icon["type"] == "image/png"} | {"icon-180.png": "180x180"}
    for name, said in sizes.items():  # width and height stand at the start of a PNG
        width, height = struct.unpack(">II", (PAGE / name).read_bytes()[16:24])
        assert f"{width}x{height}" == said
