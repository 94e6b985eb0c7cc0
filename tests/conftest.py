"""Shared by all tests: no test reads the user's environment or touches the network by accident."""

import os
import signal

import pytest

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A job in the background of a shell without job control inherits an ignored SIGINT, and hands it on to every process
# that a test starts and stops with it. Having a handler here gives them the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Leave out what has to be asked for: an emulated machine is 100 MB of packages."""
    if "arm" in config.option.markexpr:
        return
    asked = [item for item in items if item.get_closest_marker("arm") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in asked])
    items[:] = asked


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for key in list(os.environ):
        if key.startswith("FEDKD_"):
            monkeypatch.delenv(key)
