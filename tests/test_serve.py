"""The real thing on loopback: a SuperLink behind our front, outsiders who try, devices that join, runs that resume."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import safetensors.numpy
from devices import PROTOBUF, Device
from rich.console import Console
from typer.testing import CliRunner

import fedkd
from fedkd.commands.main import app
from fedkd.config import Config
from fedkd.dataset import fingerprint
from fedkd.errors import FedkdError, QuorumError
from fedkd.flower import launch
from fedkd.frames import VERSION
from fedkd.preflight import check_data
from fedkd.serving import pki
from fedkd.serving.board import TerminalBoard, qr
from fedkd.serving.center import Executor, center
from fedkd.serving.front import Offer
from fedkd.serving.gate import Gate, Traffic
from fedkd.serving.home import Home, Terms, held, invitation, join_url, listening
from fedkd.serving.invites import Registry
from fedkd.serving.service import Warden, await_nodes, front_of, offer_of, serve
from fedkd.status import read_status

ROOT = Path(__file__).resolve().parent.parent
LEAN = ("learner=constant", "student=none", "expertise=uniform", "evidence=none", "clients=2", "rounds=2")
CONFIG = Config(learner="linear", student="linear", clients=2, rounds=1)


class Lines:
    """A board that keeps what it is shown."""

    def __init__(self):
        self.lines, self.rows = [], []

    def line(self, text):
        self.lines.append(text)

    def invite(self, url):
        self.lines.append(url)

    def nodes(self, rows):
        self.rows = rows


def until(condition, seconds=30.0):
    """Wait for a condition and return what it returned."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


# What is wrong before anything starts.


@pytest.fixture
def terms(tmp_path):
    return Terms(str(tmp_path / "home"), "127.0.0.1", 0, wait=0)


def elsewhere(terms):
    return Terms(terms.home, "127.0.0.1", 0, advertise="10.9.9.9")


def refused(config, terms, tmp_path):
    board = Lines()
    with pytest.raises(FedkdError) as caught:
        serve(config, tmp_path / "run", terms, board)
    assert "\n" not in str(caught.value)
    assert not any("SuperLink" in line for line in board.lines)
    return str(caught.value)


def test_a_port_in_use_is_one_line(terms, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        said = refused(CONFIG, Terms(terms.home, "127.0.0.1", taken), tmp_path)
    assert said == f"port {taken} is in use: choose another with --port"
    assert not Home(Path(terms.home)).pki.exists()  # looked at before certificates are made


def test_an_address_that_is_not_ours_is_one_line():
    with pytest.raises(FedkdError, match=r"cannot listen on 192\.0\.2\.1:0"):
        listening("192.0.2.1", 0)
    with pytest.raises(FedkdError, match="is no address of this machine"):
        listening("no such host", 0)


def test_certificates_that_do_not_serve_are_one_line(terms, tmp_path):
    home = Home(Path(terms.home))
    made = pki.init(home.pki, now=pki._now() - pki.datetime.timedelta(days=800))
    assert "expired on" in refused(CONFIG, terms, tmp_path)
    pki.renew(home.pki)
    (home.pki / "ca.key").rename(tmp_path / "ca.key")  # kept elsewhere: then the owner has to renew
    assert "not for 10.9.9.9: fedkd pki renew" in refused(CONFIG, elsewhere(terms), tmp_path)
    (tmp_path / "ca.key").rename(home.pki / "ca.key")
    made.key.unlink()
    assert re.match(r"there is no .*server\.key", refused(CONFIG, terms, tmp_path))


def test_a_home_that_cannot_be_written_or_is_in_use_is_one_line(terms, tmp_path):
    (tmp_path / "file").write_text("")
    said = refused(CONFIG, Terms(str(tmp_path / "file" / "home"), "127.0.0.1", 0), tmp_path)
    assert said.startswith("cannot write")
    with held(Home(Path(terms.home))):
        assert f"another server has {terms.home} (process {os.getpid()})" in refused(CONFIG, terms, tmp_path)


def test_too_few_nodes_end_the_wait_and_a_quorum_starts_the_run(tmp_path):
    registry = Registry(tmp_path / "members.json")
    gate = Gate(registry, httpx.AsyncClient())
    board, config = Lines(), CONFIG.model_copy(update={"clients": 3, "quorum": 0.5})
    with pytest.raises(QuorumError, match=r"0 of 3 nodes came within 0\.3 s, 2 are needed"):
        await_nodes(registry, gate, config, 0.3, board)
    for name in ("a", "b"):
        member = registry.add(Device().pem, name)
        gate.traffic[member.mark] = Traffic(heard=time.time())
    await_nodes(registry, gate, config, 0.3, board)
    assert "2 of 3 nodes are here after 0.3 s: a quorum, so the run starts" in board.lines[-1]
    seen = []
    with pytest.raises(QuorumError):
        await_nodes(registry, gate, CONFIG.model_copy(update={"clients": 9}), 0.0, board, lambda *one: seen.append(one))
    ((event, facts),) = seen
    assert (event, facts["present"], facts["clients"]) == ("waiting", 2, 9)


def test_a_join_url_names_the_server_its_port_the_code_and_the_pin(tmp_path):
    ca = pki.init(tmp_path / "pki").ca.read_bytes()
    pin = pki.pin(ca)
    url = join_url(Terms("", "0.0.0.0", 8443, "10.0.0.5"), "CODE", ca)
    assert url == f"https://10.0.0.5:8443/#code=CODE&ca={pin}"
    assert join_url(Terms("", "::1", 1), "C", ca).startswith("https://[::1]:1/#")


def test_the_command_line_exits_with_2_and_leaves_no_name_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        words = ["--host", "127.0.0.1", "--port", str(taken), "--home", "home", "--name", "mine"]
        done = subprocess.run(
            [sys.executable, "-m", "fedkd", "serve", *words],
            cwd=tmp_path, env=environment(), capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"error port {taken} is in use: choose another with --port\n"
    assert not (tmp_path / "runs" / "mine").exists()


def test_the_commands_beside_a_server_invite_list_add_and_revoke(tmp_path):
    home = Home(tmp_path / "home")
    made = pki.init(home.pki, ["10.0.0.5"])
    Terms(str(home.folder), "0.0.0.0", 8443, "10.0.0.5").write(home.terms)
    _, public = pki.node_key(home.pki, "pi")

    def nodes(*words):
        done = CliRunner().invoke(app, ["nodes", *words, "--home", str(home.folder)], env={"COLUMNS": "200"})
        if isinstance(done.exception, FedkdError):
            return str(done.exception)
        assert done.exit_code == 0, done.output
        return done.output

    url = nodes("invite", "--seats", "3").strip()
    code = re.fullmatch(rf"join with: fedkd join 'https://10\.0\.0\.5:8443/#code=(.+)&ca={_pin(made)}'", url)[1]
    registry = Registry(home.registry)
    registry.admit(code, Device().pem, "[red]phone")
    assert nodes("add", str(public)).startswith("pi is let in")
    assert "Did you mean" in nodes("revoke", "pii")
    nodes("revoke", "pi")
    listed = nodes("list")
    assert re.search(r"\[red\]phone +never seen", listed)
    assert re.search(r"pi +revoked (just now|\d+ s ago)", listed)
    assert "2 nodes, 1 of them revoked; 2 seats left on codes that are still good" in listed
    assert f"no server runs in {home.folder} now" in listed
    assert "start a server first" in CliRunner().invoke(app, ["nodes", "list", "--home", "none"]).exception.args[0]


def _pin(made):
    return pki.pin(made.ca.read_bytes())


def test_a_server_tells_devices_what_they_need_and_no_path_of_its_own(tmp_path):
    config = CONFIG.model_copy(update={"output": "/srv/secret", "resume": True})
    shared = check_data(config)
    offer = offer_of(config, "first", shared, pki.init(tmp_path / "pki"), demo=True)
    about = dict(offer.about)
    assert Config.from_run_config(about.pop("config")) == CONFIG
    assert about == {
        "fedkd": fedkd.__version__, "wire": VERSION, "name": "first", "classes": 10, "class_names": None,
        "shape": [1, 8, 8], "rows": 400, "fingerprint": shared.transfer.fingerprint, "shards": 2,
        "authority": pki.pin(offer.ca),
    }  # fmt: skip
    x = safetensors.numpy.load(offer.transfer)["x"]
    assert (x.shape, fingerprint(x)) == ((400, 1, 8, 8), offer.fingerprint)
    share = safetensors.numpy.load(offer.shard(1))
    assert (share["x"] == shared.private(1)[0]).all()
    assert (share["y"] == shared.private(1)[1]).all()
    assert offer_of(config, "first", shared, pki.Pki(tmp_path / "pki"), demo=False).shards == 0


def test_a_terminal_gets_a_code_to_scan_and_others_plain_lines():
    url = "https://10.0.0.5:8443/#code=abc&ca=" + "0" * 32
    for terminal in (True, False):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=100)
        with TerminalBoard(console) as board:
            board.invite(url)
            board.nodes([])
        assert url in text.getvalue()
        assert ("\u2580" in text.getvalue()) == terminal  # half blocks
    assert len({len(line) for line in qr(url).splitlines()}) == 1  # a rectangle


class Refusing:
    """A SuperLink behind which one node cannot be registered and one not taken back."""

    def __init__(self):
        self.control = self.executor = self
        self.gone = []

    def keep(self):
        return False

    def register(self, key, name):
        if name == "bad":
            raise FedkdError("HTTP 500")
        return "7"

    def unregister(self, node_id):
        if node_id == "1":
            raise FedkdError("HTTP 500")
        self.gone.append(node_id)


def test_one_node_that_the_superlink_refuses_keeps_no_other_waiting(tmp_path):
    home, board, behind = Home(tmp_path), Lines(), Refusing()
    registry = Registry(home.registry)
    for name, node_id in {"stuck": "1", "leaves": "2", "bad": "", "good": ""}.items():
        member = registry.add(Device().pem, name)
        registry.settle(member.key, node_id)
    for name in ("stuck", "leaves"):
        registry.revoke(name)
    Warden(home, registry, Gate(registry, httpx.AsyncClient()), behind, board).look()
    assert behind.gone == ["2"]
    assert {member.name: member.node_id for member in registry.members()}["good"] == "7"
    assert board.lines == ["leaves was revoked", "good is registered as node 7"]
    assert len(board.rows) == 4


# Outsiders, with Flower's own processes behind.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A SuperLink, a front on a free port, and what an outsider needs to try."""
    home = Home(tmp_path_factory.mktemp("serve") / "home")
    made, board = pki.init(home.pki), Lines()
    authority = pki.pin(made.ca.read_bytes())
    offer = Offer({"name": "run", "authority": authority}, made.ca.read_bytes(), b"x" * 1000, "ab" * 32)
    with (
        held(home) as registry,
        listening("127.0.0.1", 0) as listener,
        center(home.flower, made, database="disk", app_dir=ROOT) as behind,
        front_of(offer, registry, behind, listener) as gate,
        Warden(home, registry, gate, behind, board),
        httpx.Client(
            base_url=f"https://127.0.0.1:{listener.getsockname()[1]}", verify=pki.trusting(made.ca), trust_env=False
        ) as client,
    ):
        yield type(
            "Place", (), {"home": home, "registry": registry, "behind": behind, "gate": gate, "client": client,
                          "pki": made, "board": board, "terms": Terms("", "127.0.0.1", listener.getsockname()[1])}
        )  # fmt: skip


def join(place, device, name="pi"):
    code = re.search("code=([^&]+)", invitation(place.registry, place.terms, place.pki.ca.read_bytes()))[1]
    answer = place.client.post(
        "/fedkd/join", content=device.join(code, name, authority=pki.pin(place.pki.ca.read_bytes()))
    )
    assert answer.status_code == 200, answer.text
    return int(answer.json()["node_id"])


def pull(place, device, node_id):
    from flwr.proto.fleet_pb2 import PullMessagesRequest
    from flwr.proto.node_pb2 import Node

    body = PullMessagesRequest(node=Node(node_id=node_id)).SerializeToString()
    return place.client.post("/v1/fleet/pull-messages", content=body, headers=device.headers())


@pytest.mark.slow
def test_nothing_but_fleet_calls_is_reachable_from_outside(place):
    for path in ("control/list-runs", "control/start-run", "runtime/acquire-task", "runtime/pull-messages"):
        for way in (f"/v1/{path}", f"/v1/fleet/../{path}", f"/v1/fleet/%2e%2e/{path}", f"//v1/{path}"):
            answer = place.client.post(httpx.URL(str(place.client.base_url).rstrip("/") + way), headers={})
            assert answer.status_code == 404, way


@pytest.mark.slow
def test_an_outsider_on_loopback_takes_no_task_without_the_secret(place):
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient

    secret = (place.home.flower / "superexec.secret").read_bytes()

    def ask(*interceptors):
        client = RuntimeHttpClient.from_server_address(
            place.behind.address, False, place.pki.ca.read_bytes(), interceptors=interceptors
        )
        with contextlib.closing(client):
            return client.AcquireTask(AcquireTaskRequest())

    def knows(some):
        methods = frozenset({"/flwr.proto.Runtime/AcquireTask"})
        return SuperExecAuthHttpInterceptor(master_secret=some, protected_methods=methods)

    for outsider in ((), (knows(b"\0" * 32),)):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            ask(*outsider)
        assert caught.value.response.status_code == 401
    ask(knows(secret))  # so it was the secret that was missing
    assert (place.home.flower / "superexec.secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_a_device_joins_pulls_and_is_put_out(place):
    device = Device()
    assert pull(place, device, 1).status_code == 401
    node_id = join(place, device, "phone")
    answer = pull(place, device, node_id)
    assert (answer.status_code, answer.headers["content-type"]) == (200, PROTOBUF)
    other = Device()
    other_id = join(place, other, "other")
    assert pull(place, device, other_id).status_code == 401  # the SuperLink: not its node
    Registry(place.home.registry).revoke("phone")
    assert pull(place, device, node_id).json()["error"] == "this key was revoked by the server's owner"
    until(lambda: device.pem not in place.behind.control.nodes())  # so that no run waits for it
    assert pull(place, other, other_id).status_code == 200


@pytest.mark.slow
def test_a_device_that_trusts_another_authority_does_not_talk_to_us(place, tmp_path):
    other = pki.init(tmp_path / "other")
    with (
        httpx.Client(base_url=place.client.base_url, verify=pki.trusting(other.ca), trust_env=False) as client,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.get("/fedkd/about.json")


@pytest.mark.slow
def test_the_control_client_and_the_public_command_agree(place, tmp_path):
    """Our shortcut to registration speaks an interface that Flower may change: here it would fail."""
    control, device = place.behind.control, Device()
    node_id = control.register(device.pem, "shortcut")
    assert control.register(device.pem, "again") == node_id
    assert control.nodes()[device.pem] == node_id
    done = subprocess.run(
        [launch.command("flwr"), "supernode", "list", launch.CONNECTION, "--format", "json"],
        cwd=place.home.flower, env=place.behind.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert node_id in done.stdout
    control.unregister(node_id)
    control.unregister("12345")
    assert device.pem not in control.nodes()
    assert control.stop_runs() == 0


@pytest.mark.slow
def test_a_superexec_that_dies_is_started_again(place):
    old = place.behind.executor._process
    old.kill()
    until(lambda: place.behind.executor._process is not old)
    assert place.behind.executor._process.poll() is None


# Whole runs.


def environment(**extra):
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", **extra}


class Served:
    """A ``fedkd`` command in the background and the lines that it prints."""

    def __init__(self, *words, cwd):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedkd", *words], cwd=cwd, env=environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.lines = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")))
        self._reader.start()

    @property
    def text(self):
        return "".join(self.lines)

    def says(self, pattern, seconds=200):
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            assert self.process.poll() is None and time.monotonic() < end, f"no {pattern!r} in:\n{self.text}"
            time.sleep(0.1)
        return found

    def ends(self, seconds=200):
        code = self.process.wait(timeout=seconds)
        self._reader.join()
        return code

    def close(self):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()


@contextlib.contextmanager
def stock_node(folder, k, of, *, address, ca, key):
    """Run a stock SuperNode that knows a server by its authority only."""
    folder = folder / f"node-{k}"
    folder.mkdir()
    variables = launch.neutral_environment(folder, without=ROOT)
    port, log = launch.free_port(), folder / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                *(launch.command("flower-supernode"), "--root-certificates", str(ca), "--superlink", address),
                *("--host", "127.0.0.1", "--port", str(port), "--auth-supernode-private-key", str(key)),
                *("--node-config", f'partition-id={k} num-partitions={of} state-dir="{folder}"'),
            ],
            cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        launch.end(process)
        launch.end_all(variables)


@pytest.mark.slow
def test_two_stock_nodes_finish_a_run_through_the_front_that_was_interrupted_in_between(tmp_path):
    home = Home(tmp_path / "home")
    pki.init(home.pki)
    registry = Registry(home.registry)
    keys = [pki.node_key(home.pki, f"pi-{k}") for k in (0, 1)]
    for private, public in keys:
        registry.add(public.read_bytes(), private.stem)
    sets = [word for pair in LEAN for word in ("--set", pair)]
    served = Served(
        *("serve", *sets, "--host", "127.0.0.1", "--port", "0", "--home", str(home.folder), "--name", "two"),
        cwd=tmp_path,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(launch.end_all, {"FLWR_HOME": f"{home.flower}/flwr"})
        stack.callback(served.close)
        port = served.says(r"https://127\.0\.0\.1:(\d+)/#code=")[1]
        for k, (private, _) in enumerate(keys):
            stack.enter_context(
                stock_node(tmp_path, k, 2, address=f"127.0.0.1:{port}", ca=home.pki / "ca.crt", key=private)
            )
        until(lambda: read_status(tmp_path / "runs/two").state == "waiting for clients")
        found = read_status(tmp_path / "runs/two")
        assert (found.engine, found.wanted) == ("serve", 2)
        served.says(r"\n +1 .*%")
        served.process.send_signal(signal.SIGINT)
        assert served.ends() == 130, served.text
        assert "interrupted after round 1; continue with: fedkd resume runs/two" in served.text
        assert launch._marked(f"FLWR_HOME={home.flower}/flwr".encode()) == []
        again = Served("resume", "runs/two", cwd=tmp_path)
        stack.callback(again.close)
        assert again.ends() == 0, again.text
    assert f"https://127.0.0.1:{port}/#code=" in again.text
    for text in (served.text, again.text):
        assert text.count("preset expert") == text.count("privacy   NONE (") == 1  # before the address, and not twice
        assert text.index("privacy   NONE (") < text.index("#code=")
        assert not re.search(r"^(INFO|Using SuperLink|Successfully installed|Flower run)", text, re.MULTILINE)
    assert "Successfully installed fedkd" in home.transcript.read_text()
    assert len((tmp_path / "runs/two/metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "runs/two/report.html").exists()
    assert '"finished": true' in (tmp_path / "runs/two/summary.json").read_text()
    assert {member.name: bool(member.node_id) for member in registry.members()} == {"pi-0": True, "pi-1": True}
    assert launch._marked(f"FLWR_HOME={home.flower}/flwr".encode()) == []


@pytest.mark.slow
def test_without_our_front_three_registered_nodes_run_our_apps_over_tls(tmp_path):
    """The classic way of docs/deploy.md: flower-superlink with TLS and authentication, flwr run, no fedkd command."""
    made = pki.init(tmp_path / "pki")
    folder = tmp_path / "link"
    folder.mkdir()
    (folder / "secret").write_bytes(os.urandom(32))
    variables = launch.neutral_environment(folder, without=ROOT)
    guard = launch.Guard(made.ca, made.certificate, made.key, folder / "secret")
    settings = {"learner": "constant", "student": "none", "clients": 3, "rounds": 1, "evidence": "none",
                "expertise": "uniform", "output": str(tmp_path / "out")}  # fmt: skip
    lines = []
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(launch.superlink(folder, variables, guard=guard))
        link = launch.Flwr(folder, variables, address, ca=made.ca)
        stack.enter_context(Executor(folder, variables, address, guard))
        for k in range(3):
            private, public = pki.node_key(made.folder, f"pi-{k}")
            words = [launch.command("flwr"), "supernode", "register", str(public), launch.CONNECTION]
            subprocess.run(words, cwd=folder, env=variables, check=True, capture_output=True)
            stack.enter_context(stock_node(tmp_path, k, 3, address=address, ca=made.ca, key=private))
        assert link.follow(link.submit(ROOT, settings), lines.append) == 0, "\n".join(lines)
    (round_,) = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    assert '"answered": 3' in round_
