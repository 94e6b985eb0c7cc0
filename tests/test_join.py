"""``fedkd join``: what it says before anything leaves, what it refuses, and what it leaves in the node's folder."""

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fleet_server import FleetServer
from front_stand_in import AUTHORITY, Front, serving
from typer.testing import CliRunner

from fedkd.commands import join as join_cli
from fedkd.commands.main import app
from fedkd.config import Config
from fedkd.errors import ConfigError, DataError, LinkError, Rejected, SpecError
from fedkd.fleet import resident
from fedkd.fleet.home import Home
from fedkd.fleet.identity import Identity, statement
from fedkd.fleet.joining import Invitation, authority_of, with_terms, words
from fedkd.fleet.link import Address, check_pin
from fedkd.serving import pki
from fedkd.serving.gate import signed

CONFIG = Config(clients=2, rounds=2, learner="linear", student="none")
PRIVATE = Config(
    clients=2, rounds=2, learner="linear", student="none", protect="dp_sgd", epsilon=3.0, evidence="none",
    expertise="uniform", pooled=False,
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_life(monkeypatch):
    """Joining sets a node up; here it does not come to life."""
    lives = []
    monkeypatch.setattr(join_cli, "_live", lambda home, once: lives.append((home.path, once)))
    return lives


class Counting(Front):
    def join(self, asked):
        return 2**64 - 5


@pytest.fixture
def front():
    return Counting(CONFIG, FleetServer(CONFIG))


@pytest.fixture
def mine(tmp_path, front):
    x, y = front.shared.private(1)
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    return f"npz:{tmp_path / 'mine.npz'}"


def join(front, home, *more, code="123456"):
    """Run the command against ``front``; errors of ours come out as they are."""
    with serving(front) as port:
        url = f"http://127.0.0.1:{port}/" + (f"#code={code}" if code else "")
        done = CliRunner().invoke(app, ["join", url, "--insecure", "--home", str(home), *more])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return " ".join(done.output.split())


def test_what_leaves_is_said_and_what_a_node_needs_is_kept(front, mine, tmp_path, no_life):
    home = Home(tmp_path / "home")
    said = join(front, home.path, "--data", mine, "--name", "pi-1", "--once", "--bandwidth", "50")
    assert "They stay here, and so do labels and models" in said
    assert "for up to 400 public samples, in each of 2 rounds" in said
    assert "how well you know the sample" in said
    assert "protection NONE: predictions can reveal who is in the data" in said
    settings = home.settings()
    assert (settings.node_id, settings.name, settings.bandwidth) == (2**64 - 5, "pi-1", 50_000)
    assert settings.node_config == {"data": mine, "state-dir": str(tmp_path / "home" / "state")}
    assert (home.path.stat().st_mode & 0o777, (home.path / "node.json").stat().st_mode & 0o777) == (0o700, 0o600)
    assert home.common(settings.about).transfer.fingerprint == front.about["fingerprint"]
    (asked,) = front.joined
    assert set(asked) == {"code", "key", "name", "time", "proof"}
    assert asked["key"].startswith("-----BEGIN PUBLIC KEY-----")
    shown = statement(asked["time"], "123456", asked["key"], AUTHORITY)
    assert signed(asked["key"].encode(), shown, base64.b64decode(asked["proof"]))
    assert no_life == [(home.path, True)]


def test_without_a_yes_nothing_leaves(front, mine, tmp_path, monkeypatch, no_life):
    monkeypatch.setattr(join_cli, "_is_terminal", lambda: True)
    monkeypatch.setattr(join_cli.typer, "confirm", lambda question: False)
    with pytest.raises(ConfigError, match="nothing has left this machine"):
        join(front, tmp_path / "home", "--data", mine)
    assert {path.split("?")[0].rsplit("/", 1)[0] for path in front.requests} == {"/fedkd", "/fedkd/transfer"}
    assert not front.joined
    assert not (tmp_path / "home" / "key.pem").exists()
    assert not no_life


def test_a_share_of_the_demonstration_is_taken_under_its_number(front, tmp_path):
    home = Home(tmp_path / "home")
    join(front, home.path, "--demo", "1")
    settings = home.settings()
    assert settings.node_config["partition-id"] == 1
    with np.load(settings.node_config["data"].removeprefix("npz:")) as found:
        x, y = front.shared.private(1)
        assert (found["x"] == x).all()
        assert (found["y"] == y).all()


def test_joining_again_needs_no_code_and_fetches_nothing_twice(front, mine, tmp_path):
    home = Home(tmp_path / "home")
    join(front, home.path, "--data", mine)
    key, before = home.key.read_bytes(), home.settings()
    front.requests.clear()
    join(front, home.path, "--learner", "constant", code="")
    after = home.settings()
    assert front.requests == ["/fedkd/about.json"]
    assert home.key.read_bytes() == key
    assert (after.node_id, after.node_config["data"]) == (before.node_id, mine)
    assert after.node_config["learner"] == "constant"


def test_the_announced_protection_becomes_the_nodes_terms(mine, tmp_path):
    front = Counting(PRIVATE, FleetServer(PRIVATE))
    home = Home(tmp_path / "home")
    said = join(front, home.path, "--data", mine)
    assert "protection dp_sgd: epsilon 3 at delta 1e-05 for each example, in all rounds; noise is added here" in said
    assert "insists on protect = dp_sgd" in said
    kept = home.settings().node_config
    assert (kept["require-protect"], kept["budget-epsilon"], kept["budget-delta"]) == ("dp_sgd", 3.0, 1e-5)


def test_what_the_owner_says_stands_above_what_is_announced():
    told = {"config": PRIVATE.to_run_config()}
    own = with_terms({"require-protect": "device", "budget-epsilon": 1.0}, told)
    assert (own["require-protect"], own["budget-epsilon"]) == ("device", 1.0)
    central = PRIVATE.model_copy(update={"protect": "central", "late": False, "record": False})
    assert with_terms({}, {"config": central.to_run_config()}) == {"require-protect": "central"}
    assert with_terms({}, {"config": CONFIG.to_run_config()}) == {}


MASKED = Config(
    clients=4, rounds=2, learner="linear", student="none", protect="distributed(least=1.0)", epsilon=3.0,
    evidence="none", expertise="uniform", pooled=False, late=False, record=False,
)  # fmt: skip


def test_the_announced_number_of_clients_in_a_sum_becomes_the_nodes_terms(mine, tmp_path):
    home, front = Home(tmp_path / "home"), Counting(MASKED, FleetServer(MASKED))
    said = join(front, home.path, "--data", mine)
    assert "sums of 4 clients or more" in said
    assert home.settings().node_config["least-clients"] == 4
    fewer = MASKED.model_copy(update={"clients": 3})
    with pytest.raises(ConfigError, match=r"may be of 3 clients .* this node's owner asks for 4"):
        join(Counting(fewer, FleetServer(fewer)), home.path, code="")
    assert home.settings().node_config["least-clients"] == 4


def test_an_owner_asks_for_more_clients_than_the_run_has_and_does_not_join(mine, tmp_path):
    front = Counting(MASKED, FleetServer(MASKED))
    with pytest.raises(ConfigError, match="this node's owner asks for 5"):
        join(front, tmp_path / "home", "--data", mine, "--least-clients", "5")
    assert not front.joined
    join(front, tmp_path / "home", "--data", mine, "--least-clients", "3")
    assert Home(tmp_path / "home").settings().node_config["least-clients"] == 3


@pytest.mark.parametrize(("rounds", "often"), [(1, "in one round"), (2, "in each of 2 rounds")])
def test_how_often_something_leaves_is_said_as_people_say_it(rounds, often):
    told = {"name": "run", "rows": 9, "classes": 3, "config": Config(rounds=rounds).to_run_config()}
    said = dict(words(told, {"data": "npz:a"}, 5, Address("10.0.0.1", 1, True)))
    assert said["leaves"].startswith(f"for up to 9 public samples, {often}: how likely")


def test_seeded_noise_is_called_none(mine, tmp_path):
    config = PRIVATE.model_copy(update={"noise": "seeded"})
    with pytest.raises(ConfigError, match="noise = 'system'"):
        join(Counting(config, FleetServer(config)), tmp_path / "home", "--data", mine)


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ([], ConfigError, r"say what data this node has: .* or --demo 0 to 1"),
        (["--data", "npz:/nowhere.npz"], DataError, "/nowhere.npz"),
        (["--data", "nps:x"], SpecError, "Did you mean 'npz'"),
        (["--data", "MINE", "--demo", "1"], ConfigError, "both name the data"),
        (["--data", "MINE", "--learner", "linaer"], SpecError, "Did you mean 'linear'"),
        (["--data", "MINE", "--require-protect", "dp-sgd"], ConfigError, "Did you mean 'dp_sgd'"),
        (["--data", "MINE", "--require-protect", "any"], ConfigError, "answers only with protect = any"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_the_node_joins(more, kind, words, front, mine, tmp_path):
    with pytest.raises(kind, match=words):
        join(front, tmp_path / "home", *[mine if word == "MINE" else word for word in more])
    assert not front.joined


def test_data_of_another_shape_is_refused(front, tmp_path):
    np.savez(tmp_path / "wide.npz", x=np.zeros((20, 1, 9, 9), np.float32), y=np.arange(20) % 10)
    with pytest.raises(DataError, match=r"\(1, 9, 9\)"):
        join(front, tmp_path / "home", "--data", f"npz:{tmp_path / 'wide.npz'}")


def test_a_code_that_was_used_is_refused_in_the_servers_words(front, mine, tmp_path):
    with pytest.raises(Rejected, match="^not joined: this code was used already"):
        join(front, tmp_path / "home", "--data", mine, code="000000")
    assert Home(tmp_path / "home").settings() is None


def test_a_transfer_set_that_was_tampered_with_is_refused(front, mine, tmp_path):
    x = front.shared.transfer.inputs.copy()
    x[7, 0, 3, 3] += 0.01
    from safetensors.numpy import save

    front.transfer = save({"x": x})
    with pytest.raises(DataError, match="changed on its way"):
        join(front, tmp_path / "home", "--data", mine)
    assert not front.joined


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x10\0\0\0\0\0\0\0{}"])
def test_a_transfer_set_that_is_none_is_refused(content, front, mine, tmp_path):
    front.transfer = content
    with pytest.raises(DataError, match=r"not a safetensors file|no array"):
        join(front, tmp_path / "home", "--data", mine)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wire": 3}, "version 3 of the wire format"), ({"classes": "ten"}, "'classes' must be of type int"),
        ({"class_names": [1]}, "'class_names' must be"), ({"rows": 0}, "no public rows"),
        ({"config": None}, "'config'"), ({"fingerprint": "../" * 21 + "x"}, "no fingerprint"),
        ({"fingerprint": "../../x"}, "no fingerprint"),
    ],
)  # fmt: skip
def test_a_description_that_makes_no_sense_is_one_line(change, words, front, mine, tmp_path):
    front.about |= change
    with pytest.raises(LinkError, match=words):
        join(front, tmp_path / "home", "--data", mine)


def test_a_description_that_is_no_json_is_one_line(front, mine, tmp_path):
    front.get = lambda path: (200, b"<html>")
    with pytest.raises(LinkError, match="not JSON"):
        join(front, tmp_path / "home", "--data", mine)


def test_a_damaged_folder_is_said(front, mine, tmp_path):
    home = Home(tmp_path / "home")
    join(front, home.path, "--data", mine)
    (home.path / "node.json").write_text(json.dumps({"url": 1}))
    with pytest.raises(Exception, match="is damaged; remove it and join again"):
        join(front, home.path)


def test_a_join_address_is_read_with_and_without_its_parts():
    whole = Invitation.of("https://host:9/#code=123456&ca=00ff")
    assert dataclasses.astuple(whole)[1:] == ("123456", "00ff")
    assert whole.home().parts[-3:] == (".fedkd", "nodes", "host-9")
    assert Invitation.of("https://host").code == ""


def test_what_shows_that_a_device_has_its_key_is_as_other_clients_write_it():
    golden = json.loads((Path(__file__).parent / "vectors" / "join.json").read_text())
    code, key, when, authority = (golden[name] for name in ("code", "key", "time", "authority"))
    said = statement(when, code, key, authority)
    assert said.decode() == golden["statement"]
    assert signed(key.encode(), said, base64.b64decode(golden["proof"]))


def test_a_device_signs_for_the_authority_that_it_checks_and_not_for_the_one_that_a_server_names(tmp_path):
    home, made = Home(tmp_path / "home"), pki.init(tmp_path / "pki")
    assert authority_of(home, {"authority": AUTHORITY}) == AUTHORITY
    assert authority_of(home, {}) == ""
    pin = pki.pin(made.ca.read_bytes())
    home.keep_authority(check_pin(made.ca.read_text(), pin))
    assert authority_of(home, {"authority": AUTHORITY}) == pin


def test_a_device_on_p384_shows_its_key_as_well(tmp_path):
    mine = Identity(ec.generate_private_key(ec.SECP384R1()))
    shown = mine.joining("code", AUTHORITY, 1_795_300_000.25)
    said = statement("2026-11-21T22:26:40.250000+00:00", "code", shown["key"], AUTHORITY)
    assert signed(mine.public, said, base64.b64decode(shown["proof"]))


def test_a_relative_path_of_data_is_kept_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert join_cli._absolute("npz:mine.npz") == f"npz:{tmp_path / 'mine.npz'}"
    assert join_cli._absolute("digits") == "digits"
    assert join_cli._absolute("npz(path='x')") == "npz(path='x')"


@pytest.mark.parametrize("arguments", [[], ["one", "two"], ["--twice"], ["FOLDER"]])
def test_the_process_of_a_node_says_in_one_line_what_it_lacks(arguments, tmp_path, capsys):
    assert resident.main([str(tmp_path / word) if word == "FOLDER" else word for word in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "expected: python -m fedkd.fleet FOLDER" in said or "there is no node in" in said
