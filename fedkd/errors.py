"""Every error fedkd raises on purpose. The command line prints them as one line and exits with 2.

FedkdError
├── SpecError         a part such as ``"era(temperature=0.1)"`` cannot be built
├── ConfigError       a setting is unknown, out of range or contradicts another
├── DataError         a data set is missing, damaged or not what was asked for
├── ExtraError        an optional dependency is not installed
├── SoftLabelError    predictions are not distributions of the right shape
├── CodecError        bytes from elsewhere are not a frame that we can trust
│   └── FingerprintError   both sides do not hold the same transfer set
├── AdmissionError    a device is not let in: its code or its key is no good, or no longer
├── CheckpointError   a checkpoint is missing, damaged or of another run
├── PrivacyError      a privacy guarantee cannot be given, or a budget would be exceeded
│   ├── BudgetExhausted    the budget does not hold what a release would cost
│   └── LedgerError        a ledger is missing, damaged or older than it was
├── RoundError        a round cannot produce a teacher
│   └── QuorumError        too few clients answered in time
└── LinkError         a server does not do what a node needs of it
    ├── Unreachable        it does not answer, or not now: worth another try
    ├── Untrusted          its certificate is not one that the node trusts
    └── Rejected           it says no
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedkdError(Exception):
    """Base of all errors that a user can mend."""


class SpecError(FedkdError):
    """A part such as ``"era(temperature=0.1)"`` cannot be built."""


class ConfigError(FedkdError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(FedkdError):
    """A data set is missing, damaged or not what was asked for."""


class ExtraError(FedkdError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        """Name the feature, what it lacks and the line that installs it."""
        super().__init__(f"{feature} needs {package}, which is not installed. Run: pip install 'fedkd[{extra}]'")


class SoftLabelError(FedkdError):
    """Predictions are not distributions of the right shape."""


class CodecError(FedkdError):
    """Bytes from elsewhere are not a frame that we can trust."""


class FingerprintError(CodecError):
    """Both sides do not hold the same transfer set."""


class AdmissionError(FedkdError):
    """A device is not let in: its code or its key is no good, or no longer."""


class CheckpointError(FedkdError):
    """A checkpoint is missing, damaged or of another run."""


class PrivacyError(FedkdError):
    """A privacy guarantee cannot be given, or a budget would be exceeded."""


class BudgetExhausted(PrivacyError):
    """The budget does not hold what a release would cost. The message is the same for all: it may be sent."""

    def __init__(self, window: str) -> None:
        """Keep which ``window`` is full ("total", "run" or "period") for the client's own eyes."""
        super().__init__("the privacy budget of this client does not allow this release")
        self.window = window


class LedgerError(PrivacyError):
    """A ledger is missing, damaged or older than it was."""


class RoundError(FedkdError):
    """A round cannot produce a teacher."""


class QuorumError(RoundError):
    """Too few clients answered in time."""


class LinkError(FedkdError):
    """A server does not do what a node needs of it."""


class Unreachable(LinkError):
    """A server does not answer, or not now: worth another try."""


class Untrusted(LinkError):
    """The certificate of a server is not one that the node trusts."""


class Rejected(LinkError):
    """A server says no."""

    def __init__(self, message: str, status: int, said: str = "") -> None:
        """Keep the HTTP ``status`` with the one-line ``message``, and what the server itself ``said``."""
        super().__init__(message)
        self.status, self.said = status, said or message


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest match, or an empty string."""
    plain = {_plain(name): name for name in known}
    near = difflib.get_close_matches(_plain(given), plain, n=1)
    return f" Did you mean {plain[near[0]]!r}?" if near else ""


def _plain(name: str) -> str:
    """Return a name without what people mistake most often: capitals, and hyphens for underscores."""
    return name.lower().replace("-", "_")
