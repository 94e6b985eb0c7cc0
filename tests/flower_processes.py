"""Flower's own programs for tests: a SuperLink and SuperNodes on this machine, started, awaited and ended."""

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fedkd.flower import launch


@dataclass(frozen=True)
class Deployment:
    """A SuperLink at ``address``, a command line that talks to it, and what is needed to start more beside it."""

    address: str
    link: launch.Flwr
    folder: Path
    environment: dict


@contextlib.contextmanager
def superlink(folder, *, app_dir=None, arguments=(), **extra):
    """Run a SuperLink that keeps to ``folder`` (empty); ``extra`` are environment variables."""
    environment = launch.neutral_environment(folder, without=app_dir) | extra
    with launch.superlink(folder, environment, arguments=arguments) as address:
        yield Deployment(address, launch.Flwr(folder, environment, address), folder, environment)


@contextlib.contextmanager
def supernode(deployment, k, of, **node_config):
    """Run SuperNode ``k`` of ``of`` in a folder of its own; yield its process and the path of its log."""
    folder = deployment.folder / f"node-{k}"
    folder.mkdir(exist_ok=True)
    port = launch.free_port()
    config = {"partition-id": k, "num-partitions": of, **node_config}
    log = folder / "supernode.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                *(launch.command("flower-supernode"), "--insecure", "--superlink", deployment.address),
                *("--host", "127.0.0.1", "--port", str(port), "--node-config"),
                " ".join(f"{key}={launch.toml_value(value)}" for key, value in config.items()),
            ],
            cwd=folder,
            env=deployment.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        launch.wait_until_healthy(process, port, log)
        yield process, log
    finally:
        launch.end(process)


@contextlib.contextmanager
def deployment(folder, *, nodes, app_dir=None, node_config=lambda k: {}):
    """Run a SuperLink with ``nodes`` SuperNodes, partitions 0 to ``nodes`` - 1."""
    with superlink(folder, app_dir=app_dir) as center, contextlib.ExitStack() as stack:
        for k in range(nodes):
            stack.enter_context(supernode(center, k, nodes, **node_config(k)))
        yield center
