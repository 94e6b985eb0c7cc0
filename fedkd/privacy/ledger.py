"""The ledger of a client: what was spent on its private data, over rounds, runs and restarts, and what may still be.

    ledger.replay(id, query)           the bytes of an earlier answer, free; None if there is none
    ledger.reserve(id, event, ...)     is there budget? then the event is on the disk before anything private is read
    release = mechanism(...)           a crash from here on costs the event, and its id is never used again
    ledger.commit(id, release)         the bytes are on the disk before they leave, so that a retry sends the same

One ledger is of one data set, unit of privacy and kind of neighbors; it refuses to be opened for another. It keeps
events, not epsilons: another accountant can read it anew. Another budget is a record too (``amend``), and never
forgets what was spent. Fresh noise for an old query would be an averaging attack, and so would a second ledger of the
same data.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fedkd.errors import BudgetExhausted, ConfigError, LedgerError, PrivacyError
from fedkd.events import Event, Neighbors, NonPrivate, Unit, from_fields, to_code, valid
from fedkd.files import write_atomic
from fedkd.privacy.chain import Body, Chain, Head, one_line, rescue

Fits = Callable[[Sequence[Event], Event], bool]
"""Whether one more event fits into a budget of which some were spent."""
VERSION = 1
DAY = 86_400.0
LATEST = 253_402_300_800.0  # the year 10000, beyond which no calendar reads a time
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
"""What ids may look like: they come over the network and end in tables and spreadsheets."""


@dataclass(frozen=True)
class Budget:
    """The most that may be spent: ``epsilon`` in all, ``per_run``, and ``per_period`` of any ``period_days``; (0, inf).

    All at the same ``delta`` in [0, 1). The total is what a report should quote: what is renewed adds up.
    """

    epsilon: float
    delta: float
    per_run: float | None = None
    per_period: float | None = None
    period_days: float = 30.0

    def __post_init__(self) -> None:
        """Check that every number is one."""
        for name in ("epsilon", "per_run", "per_period", "period_days"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"`{name}` of a budget must be positive and finite, got {value}")
        if not 0 <= self.delta < 1:
            raise ConfigError(f"`delta` of a budget must be in [0, 1), got {self.delta}")

    @property
    def windows(self) -> dict[str, float]:
        """Epsilon by window: "total", and "run" and "period" where they are limited."""
        limits = {"total": self.epsilon, "run": self.per_run, "period": self.per_period}
        return {window: limit for window, limit in limits.items() if limit is not None}


@dataclass(frozen=True)
class Reservation:
    """An event that counts as spent since ``time`` (seconds since 1970), for one query of one run.

    ``payload`` is the SHA-256 of the bytes that were released, None if none were.
    """

    release_id: str
    event: Event
    run: str
    query_digest: str
    time: float
    payload: str | None = None


@dataclass
class Account:
    """What the records say, one :meth:`add` after the other: whose ledger it is and what was spent.

    ``repairs`` counts crashes that left a torn line, ``losses`` how often the loss of records was accepted, and
    ``unreadable`` the lines that nobody could read then.
    """

    fingerprint: str = ""
    unit: Unit = Unit.EXAMPLE
    neighbors: Neighbors = Neighbors.ADD_REMOVE
    budgets: list[Budget] = field(default_factory=list)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    repairs: int = 0
    losses: int = 0
    unreadable: int = 0
    opened: float = -math.inf
    last: float = -math.inf

    def add(self, body: Body) -> None:
        """Take one more record; raise :class:`LedgerError` if it makes no sense after those before it."""
        try:
            seconds, kind = float(body["time"]), body["kind"]
            if not self.last <= seconds < LATEST or (kind == "open") == bool(self.budgets):
                raise ValueError
            _ADD[kind](self, body)
            self.last = seconds
        except (KeyError, TypeError, ValueError, ConfigError):
            raise LedgerError(f"the ledger has a record that fedkd does not know: {str(body)[:80]}") from None

    def spent(self, *, run: str | None = None, since: float = -math.inf) -> tuple[Event, ...]:
        """Return the events of one run or of all, from the time ``since`` on."""
        return tuple(
            entry.event for entry in self.reservations.values() if run in (None, entry.run) and entry.time >= since
        )

    def _open(self, body: Body) -> None:
        if body["version"] != VERSION:
            raise ValueError
        budget = Budget(**body["budget"])
        self.unit, self.neighbors = Unit(body["unit"]), Neighbors(body["neighbors"])
        self.fingerprint, self.opened = str(body["fingerprint"]), float(body["time"])
        self.budgets.append(budget)

    def _budget(self, body: Body) -> None:
        self.budgets.append(Budget(**body["budget"]))

    def _reserve(self, body: Body) -> None:
        names = [check_name(key, body[key]) for key in ("release_id", "run", "query_digest")]
        if names[0] in self.reservations:
            raise ValueError
        numbers = {key: value for key, value in body["event"].items() if key != "code"}
        event = from_fields(body["event"]["code"], numbers)
        self.reservations[names[0]] = Reservation(names[0], event, names[1], names[2], float(body["time"]))

    def _commit(self, body: Body) -> None:
        found = self.reservations[body["release_id"]]
        if found.payload is not None or not isinstance(body["payload"], str):
            raise ValueError
        self.reservations[found.release_id] = replace(found, payload=body["payload"])

    def _repair(self, body: Body) -> None:
        self.repairs += 1

    def _loss(self, body: Body) -> None:
        unreadable = int(body["unreadable"])
        self.losses, self.unreadable = self.losses + 1, self.unreadable + unreadable


_ADD: dict[Any, Callable[[Account, Body], None]] = {
    "open": Account._open,
    "budget": Account._budget,
    "reserve": Account._reserve,
    "commit": Account._commit,
    "repair": Account._repair,
    "loss": Account._loss,
}


class Ledger:
    """The one writer of a ledger. Threads may share it; what it raises says more than a server should hear, except
    :class:`BudgetExhausted`.
    """

    def __init__(
        self, chain: Chain, account: Account, fits: Callable[[float, float], Fits], clock: Callable[[], float]
    ):
        """Use :meth:`open`."""
        self._chain, self._account, self._clock = chain, account, clock
        self.budget = account.budgets[-1]
        self._fits = {window: fits(limit, self.budget.delta) for window, limit in self.budget.windows.items()}
        self._under_way: set[str] = set()
        self._turn = threading.RLock()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        fingerprint: str,
        unit: Unit,
        neighbors: Neighbors,
        budget: Budget,
        fits: Callable[[float, float], Fits],
        clock: Callable[[], float] = time.time,
        seen: Head | None = None,
        amend: bool = False,
        accept_loss: bool = False,
    ) -> Ledger:
        """Open the ledger in ``folder``, or begin it, and hold its lock until :meth:`close`.

        ``fits(epsilon, delta)`` returns the filter of one window; that of a period must not choose its order by the
        first event that it is given, which changes as the window moves on. ``seen`` is a head that was kept elsewhere:
        a ledger that does not contain it was put back. ``amend`` records ``budget`` where the ledger has another;
        ``accept_loss`` goes on with what can be read of a broken ledger, and charges for that now.
        """
        check_name("fingerprint", fingerprint)
        chain, account = Chain(folder), Account()
        key = {"fingerprint": fingerprint, "unit": unit.value, "neighbors": neighbors.value}
        first = {"kind": "open", "version": VERSION, **key, "budget": asdict(budget)}
        try:
            try:
                records = chain.load(seen=seen)
            except LedgerError as error:
                if not accept_loss:
                    raise
                chain.replace(_salvage(chain.folder, first, clock, str(error)))
                records = chain.load()
            for body in records.bodies:
                account.add(body)
            if not account.budgets:
                _put(chain, account, first, clock)
            found = {"fingerprint": account.fingerprint, "unit": account.unit, "neighbors": account.neighbors}
            for name, value in key.items():
                if found[name] != value:
                    raise PrivacyError(f"the ledger in {folder} is of {name} {found[name]}, got {value}")
            if records.torn:
                _put(chain, account, {"kind": "repair", "cut": records.torn}, clock)
            if budget != account.budgets[-1]:
                if not amend:
                    raise PrivacyError(
                        f"the ledger in {folder} is under {account.budgets[-1]}, got {budget}: "
                        "say that it shall be amended; what was spent stays spent"
                    )
                _put(chain, account, {"kind": "budget", "budget": asdict(budget)}, clock)
            return cls(chain, account, fits, clock)
        except BaseException:
            chain.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the ledger."""
        self._chain.close()

    @property
    def head(self) -> Head:
        """How long the ledger is and its last hash: keep it with a model, and give it to :meth:`open` as ``seen``."""
        return self._chain.head

    def find(self, release_id: str) -> Reservation | None:
        """Return what was reserved under this id, whether or not it was committed."""
        with self._turn:
            return self._account.reservations.get(release_id)

    def spent(self, run: str | None = None, since: float | None = None) -> tuple[Event, ...]:
        """Return the events that count as spent, of one run or all, from the time ``since`` on."""
        with self._turn:
            return self._account.spent(run=run, since=-math.inf if since is None else since)

    def would_exceed(self, event: Event, run: str) -> bool:
        """Say whether ``event`` would be refused now; worth asking before training."""
        with self._turn:
            return self._full(event, run) is not None

    def reserve(self, release_id: str, event: Event, *, run: str, query_digest: str) -> Reservation:
        """Spend ``event`` on one query; raise :class:`BudgetExhausted` if a window has no room for it.

        The event counts from when this returns, whatever comes after. An event that makes no sense is non-private.
        """
        body = {"kind": "reserve", "release_id": release_id, "run": run, "query_digest": query_digest}
        for name in ("release_id", "run", "query_digest"):
            check_name(name, body[name])
        with self._turn:
            if release_id in self._account.reservations:
                self.replay(release_id, query_digest)
                raise PrivacyError(f"release {release_id} was made already: replay it")
            event = event if valid(event) else NonPrivate()
            window = self._full(event, run)
            if window is not None:
                raise BudgetExhausted(window)
            self._put({**body, "event": {"code": to_code(event), **asdict(event)}})
            self._under_way.add(release_id)
            return self._account.reservations[release_id]

    def commit(self, release_id: str, payload: bytes) -> None:
        """Keep the bytes of a release, after which they may leave; once for each reservation, by who made it."""
        with self._turn:
            if release_id not in self._under_way:
                raise PrivacyError(f"release {release_id} is not under way: reserve it first, commit it once")
            with one_line(self._chain.folder):
                write_atomic(self._payload(release_id), payload)
            self._put({"kind": "commit", "release_id": release_id, "payload": hashlib.sha256(payload).hexdigest()})
            self._under_way.remove(release_id)

    def replay(self, release_id: str, query_digest: str) -> bytes | None:
        """Return the very bytes that answered this query before, at no cost; None if the id is new.

        The same id with another query is refused, and so is what was reserved before a crash and never committed.
        """
        with self._turn:
            found = self._account.reservations.get(release_id)
            if found is None:
                return None
            if found.query_digest != query_digest:
                raise PrivacyError(f"release {release_id} answered another query; one id stands for one query")
            if found.payload is None:
                why = "is still under way" if release_id in self._under_way else "was lost in a crash, and stays spent"
                raise PrivacyError(f"release {release_id} {why}; ask under another id")
            payload = read_payload(self._chain.folder, found)
            if payload is None:
                raise PrivacyError(
                    f"the bytes of release {release_id} are missing or altered: they cannot be sent again"
                )
            return payload

    def _full(self, event: Event, run: str) -> str | None:
        """Return the first window that has no room for ``event``, None if all have."""
        since = self._now() - DAY * self.budget.period_days
        spent = {"total": self.spent(), "run": self.spent(run=run), "period": self.spent(since=since)}
        if not valid(event) or isinstance(event, NonPrivate):  # whatever the accountant says
            return "total"
        return next((window for window, fits in self._fits.items() if not fits(spent[window], event)), None)

    def _now(self) -> float:
        return _now(self._account, self._clock)

    def _put(self, body: Body) -> None:
        _put(self._chain, self._account, body, self._clock)

    def _payload(self, release_id: str) -> Path:
        return payload_path(self._chain.folder, release_id)


def check_name(what: str, name: object) -> str:
    """Return ``name`` if it is one that a ledger takes."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(f"`{what}` must be 1 to 200 letters, digits or ._:/@+- and start with one of the former")
    return name


def payload_path(folder: Path, release_id: str) -> Path:
    """Return where the bytes of a release are kept; the name says nothing about them."""
    return folder / "payloads" / hashlib.sha256(release_id.encode()).hexdigest()[:32]


def read_payload(folder: Path, reservation: Reservation) -> bytes | None:
    """Return the bytes that were committed, None if they are gone or are not those."""
    try:
        payload = payload_path(folder, reservation.release_id).read_bytes()
    except OSError:
        return None
    return payload if hashlib.sha256(payload).hexdigest() == reservation.payload else None


def _now(account: Account, clock: Callable[[], float]) -> float:
    """Return the time, which never goes back: a clock that was set back must not bring an old period's budget back."""
    now = float(clock())
    if not 0 <= now < LATEST:
        raise PrivacyError(f"a clock must say seconds since 1970, before the year 10000, got {now}")
    return max(now, account.last)


def _put(chain: Chain, account: Account, body: Body, clock: Callable[[], float]) -> None:
    """Append a record with the time, and only then believe it."""
    body = {**body, "time": _now(account, clock)}
    chain.append(body)
    account.add(body)


def _salvage(folder: Path, first: Body, clock: Callable[[], float], reason: str) -> list[Body]:
    """Return the records of a new chain: what holds of the old one, the loss, and whatever else can still be read.

    What came after the break is charged as if spent now, which is the safe side for every window.
    """
    records, loose, unreadable = rescue(folder)
    account = Account()
    kept = list(records.bodies) or [{**first, "time": _now(account, clock)}]
    for body in kept:
        account.add(body)
    stamp = {"time": _now(account, clock)}
    after: list[Body] = []
    for body in loose:
        if body.get("kind") not in ("reserve", "commit"):
            continue
        try:
            account.add({**body, **stamp})
        except LedgerError:
            unreadable += 1
        else:
            after.append({**body, **stamp})
    return [*kept, {"kind": "loss", "reason": reason, "unreadable": unreadable, **stamp}, *after]
