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


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for key in list(os.environ):
        if key.startswith("FEDKD_"):
            monkeypatch.delenv(key)
