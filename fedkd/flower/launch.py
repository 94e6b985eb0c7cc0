"""Run a Flower App in Flower's own simulation as one call: start, follow, report the outcome, leave nothing behind.

``flwr run`` by itself leaves a SuperLink running, exits with 0 when the ServerApp failed, installs the app's
dependencies afresh for each run, and lets Ray import the ClientApp from the folder in which that SuperLink happened
to be started. So we start a SuperLink of our own, in an empty folder, on a free port, and end it afterward.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.errors import ExtraError, FedkdError
from fedkd.flower.appdir import check_keys, component_packages

Echo = Callable[[str], None]

STARTUP = 60.0
"""Seconds that a SuperLink may take until it answers."""
PATIENCE = 15.0
"""Seconds that a run may take to stop, and a SuperLink to end by itself."""
LOOK = 0.2
"""Seconds between two looks at what cannot wake us."""
GLANCE = 60.0
"""Seconds between two looks at a run whose log goes on; each costs the start of a program."""
ATTEMPTS = 3
"""Looks in a row that may fail."""
STOPPED = 130
"""Exit code of a run that was stopped, as of a program that was interrupted."""
CONNECTION = "fedkd"


def run_with_flower(
    app_dir: Path, run_config: Mapping[str, str | int | float | bool], *, nodes: int, echo: Echo
) -> int:
    """Run the Flower App in ``app_dir`` with ``nodes`` simulated clients; return 0 if its ServerApp completed.

    The keys of ``run_config`` must be in the app's ``[tool.flwr.app.config]``; paths among the values must be
    absolute, since the apps run in another folder. ``echo`` gets the log line by line. On Ctrl-C the run is stopped.
    """
    if importlib.util.find_spec("ray") is None:
        raise ExtraError("Flower's simulation", "ray", "dev")
    check_keys(app_dir, run_config)
    with tempfile.TemporaryDirectory(prefix="fedkd-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        environment = neutral_environment(folder, without=app_dir)
        with superlink(folder, environment, simulation=True) as address:
            link = Flwr(folder, environment, address)
            cores = os.cpu_count() or 1
            run = link.submit(
                app_dir,
                run_config,
                federation=f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus={cores}",
            )
            echo(f"Flower run {run} on {address}, {nodes} simulated nodes; Ray takes a while to start")
            try:
                return link.follow(run, echo)
            except BaseException:
                link.stop(run)
                raise


@dataclass(frozen=True)
class Guard:
    """What makes a SuperLink ask who is calling: TLS files (PEM), and the secret of the one who runs ServerApps."""

    ca: Path
    certificate: Path
    key: Path
    secret: Path


class Flwr:
    """The ``flwr`` command line, talking to one SuperLink. It has no Python interface that Flower calls public."""

    def __init__(self, folder: Path, environment: Mapping[str, str], address: str, *, ca: Path | None = None) -> None:
        """Write the connection to ``address`` into the Flower home in ``folder``; over TLS if ``ca`` is given."""
        self._folder, self._environment = folder, dict(environment)
        home = Path(self._environment["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "{address}"\n'
            + ("insecure = true\n" if ca is None else f"root-certificates = {_quoted(str(ca))}\n"),
            encoding="utf-8",
        )

    def submit(
        self, app_dir: Path, run_config: Mapping[str, str | int | float | bool], *, federation: str | None = None
    ) -> str:
        """Submit the app and return the id of its run; raise what Flower says if it refuses it."""
        arguments = ["run", str(app_dir.resolve()), CONNECTION]
        if run_config:
            path = self._folder / "run-config.toml"
            path.write_text(to_toml(run_config), encoding="utf-8")
            arguments += ["--run-config", str(path)]
        if federation is not None:
            arguments += ["--federation-config", federation]
        return str(self._json(arguments)["run-id"])

    def status(self, run: str) -> str:
        """Return the status of a run, such as ``running`` or ``finished:completed``."""
        runs = self._json(["list", CONNECTION, "--run-id", run])["runs"]
        return str(runs[0]["status"]) if runs else "unknown"

    def _status_now(self, run: str) -> str:
        for _ in range(ATTEMPTS - 1):  # a machine that is busy with clients may be too slow for Flower's time limits
            with contextlib.suppress(FedkdError):
                return self.status(run)
        return self.status(run)

    def follow(self, run: str, echo: Echo) -> int:
        """Echo the log until the run has ended; return 0 if it completed, 130 if it was stopped, else 1."""
        with self._log(run, echo) as log:
            while True:
                # The log ends with the run. The run is looked at for itself too, in case the log lags or is lost.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    log.wait(timeout=GLANCE)
                status = self._status_now(run)
                if status.startswith("finished"):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        log.wait(timeout=PATIENCE)
                    break
                time.sleep(LOOK)
        if status != "finished:completed":
            echo(f"Flower run {run}: {status}")
        return {"finished:completed": 0, "finished:stopped": STOPPED}.get(status, 1)

    def stop(self, run: str) -> None:
        """Stop a run and wait until it has ended, for a while; a run that has ended already is left as it is."""
        with contextlib.suppress(FedkdError):
            self._json(["stop", run, CONNECTION])
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end and not self.status(run).startswith("finished"):
                time.sleep(LOOK)

    def _json(self, arguments: Sequence[str]) -> Any:
        done = subprocess.run(
            [command("flwr"), *arguments, "--format", "json"],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        answer = _last_json(done.stdout)
        if done.returncode or answer is None or not answer.get("success", True):
            # Flower exits with 0 here too. What matters is in the last paragraph of what it says.
            said = (answer or {}).get("error-message") or plain(done.stdout + done.stderr)
            raise FedkdError(
                f"'flwr {arguments[0]}' failed: {said.strip().split(chr(10) * 2)[-1] or 'no reason given'}"
            )
        return answer

    @contextlib.contextmanager
    def _log(self, run: str, echo: Echo) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [command("flwr"), "log", run, CONNECTION, "--stream"],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        lines = process.stdout

        def read() -> None:
            for line in lines:
                echo(plain(line).rstrip())

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            reader.join(timeout=PATIENCE)
            lines.close()


@contextlib.contextmanager
def superlink(
    folder: Path,
    environment: Mapping[str, str],
    *,
    simulation: bool = False,
    arguments: Sequence[str] = (),
    guard: Guard | None = None,
) -> Iterator[str]:
    """Run a SuperLink on loopback, in memory unless ``arguments`` say else; yield its ``host:port`` once it answers.

    ``folder`` becomes its working directory: it must hold nothing that could be imported. Without a ``guard`` it has
    no TLS and runs ServerApps itself; with one, only registered nodes may call, and who has the secret runs
    ServerApps. At the end all processes that were started with this ``environment`` are ended, whoever adopted them.
    """
    port = free_port()
    log = folder / "superlink.log"
    mode = ["--simulation"] if simulation else []
    if guard is None:
        mode += ["--insecure", "--isolation", "subprocess"]
    else:
        mode += ["--ssl-ca-certfile", str(guard.ca), "--ssl-certfile", str(guard.certificate)]
        mode += ["--ssl-keyfile", str(guard.key), "--enable-supernode-auth"]
        mode += ["--isolation", "process", "--superexec-auth-secret-file", str(guard.secret)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                *(command("flower-superlink"), *mode),
                *("--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation", *arguments),
            ],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until_healthy(process, port, log, ca=guard.ca if guard is not None else None)
        yield f"127.0.0.1:{port}"
    finally:
        end(process)
        end_all(environment)


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path, *, ca: Path | None = None) -> None:
    """Return when ``/health`` on ``port`` says yes; raise with the end of ``log`` if the process ends before."""
    scheme = "http" if ca is None else "https"
    tls = [] if ca is None else [urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(ca)))]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *tls)  # loopback needs no proxy
    deadline = time.monotonic() + STARTUP
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with opener.open(f"{scheme}://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:  # not listening yet; urllib's own errors are of this kind
            time.sleep(LOOK)
    tail = "\n".join(plain(log.read_text(encoding="utf-8", errors="replace")).splitlines()[-5:])
    state = "does not answer" if process.poll() is None else f"ended with exit code {process.returncode}"
    raise FedkdError(f"{Path(str(process.args[0])).name} {state}:\n{tail}")  # type: ignore[index]


def end(process: subprocess.Popen[Any]) -> None:
    """Ask a process to end, and make it."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_all(environment: Mapping[str, str]) -> None:
    """End every process that has the ``FLWR_HOME`` of ``environment``: what Flower and Ray started and left behind.

    They detach themselves, so their parents do not tell. Without ``/proc`` they end as Flower lets them.
    """
    mark = f"FLWR_HOME={environment['FLWR_HOME']}".encode()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + PATIENCE / 3
        while found := _marked(mark):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
            if time.monotonic() > deadline:
                break
            time.sleep(LOOK)


def _marked(mark: bytes) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def neutral_environment(folder: Path, *, without: Path | None = None) -> dict[str, str]:
    """Return an environment in which Flower keeps to ``folder``, asks nobody and imports no app but the bundle's.

    ``without`` is the folder of the app: what lies on ``PYTHONPATH`` and has packages of the same names is taken off,
    be it the same checkout or another.
    """
    scripts = str(Path(sys.executable).parent)
    names = component_packages(without) if without is not None else set()
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    kept = [entry for entry in entries if not any((Path(entry) / name).is_dir() for name in names)]
    environment = os.environ | {
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_COLOR": "1",
        "PYTHONPATH": os.pathsep.join(kept),
        "PATH": scripts
        + os.pathsep
        + os.environ.get("PATH", os.defpath),  # the SuperLink starts Flower's other programs
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1"])),
    }
    environment["no_proxy"] = environment["NO_PROXY"]
    if len(str(folder)) < 40:  # Ray makes Unix sockets below, whose paths must be short
        environment["RAY_TMPDIR"] = str(folder)
    return environment


def command(name: str) -> str:
    """Return the path of a program of Flower's, from the environment that runs us."""
    found = shutil.which(name, path=str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", ""))
    if found is None:
        raise FedkdError(f"cannot find the program {name!r} that comes with flwr; is flwr installed here?")
    return found


def free_port() -> int:
    """Return a port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def to_toml(values: Mapping[str, str | int | float | bool]) -> str:
    """Return ``values`` as TOML.

    >>> print(to_toml({"rate": 1e-05, "late": True, "data": 'npz("a")'}), end="")
    "rate" = 1e-05
    "late" = true
    "data" = "npz(\\"a\\")"
    """
    return "".join(f"{_quoted(key)} = {toml_value(value)}\n" for key, value in values.items())


def toml_value(value: str | int | float | bool) -> str:
    """Return one value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    """A JSON string is a TOML string, but for the one control character that JSON leaves alone."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def plain(text: str) -> str:
    """Return ``text`` without terminal colors."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def _last_json(text: str) -> Any:
    """Return the JSON object that ends ``text``; other words may come before it."""
    for start in (match.start() for match in re.finditer(r"^\{", text, re.MULTILINE)):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(text[start:])
    return None
