"""What a run will send, before anything is loaded or trained: dummy answers through the real codec, set beside FedAvg.

Selections are the real ones with the run's own random streams, soft labels and weights are noise. Frames that are no
shorter for soft labels that are easy to guess are predicted to the byte; all others are bounded from above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedkd import transfer
from fedkd.client import Answer
from fedkd.codec import Known, encode_query, encode_release, remember, remember_feedback
from fedkd.config import Config, mixed
from fedkd.errors import PrivacyError
from fedkd.events import Event
from fedkd.expertise import GATES, STATIC
from fedkd.fedavg import FedAvg, fedavg
from fedkd.flower.messages import answer_content, query_content, size_of
from fedkd.learner import check_shape
from fedkd.memory import Memory, Pool
from fedkd.preflight import check_attack
from fedkd.privacy.accountant import spent
from fedkd.privacy.client_level import full_clip
from fedkd.privacy.ledger_report import verify
from fedkd.privacy.purse import fits_in, planned
from fedkd.privacy.report import spent_in
from fedkd.privacy.responses import deviation, keep_probability
from fedkd.protect import SAID, doubtful_delta, least_of, numbers_of_round, protection_of, spending
from fedkd.random import generator
from fedkd.records import Query, Release, Teacher
from fedkd.registry import parse
from fedkd.release import form, prepare
from fedkd.secagg.sizes import conversation
from fedkd.select import Selection, select
from fedkd.softlabels import Array, normalize
from fedkd.stored import Stored, measures, transfer_measures
from fedkd.units import ceiling, size

FINGERPRINT = "00" * 32
SEARCHED = 100_000
"""Rounds in which we look for the one from which FedAvg is cheaper, or dearer."""
GUESSED = {"delta", "range_code", "zstd"}
"""What makes a frame shorter by as much as its content can be guessed."""


@dataclass(frozen=True)
class Sent:
    """Bytes of one client in one round: messages as Flower serializes them, and the frames in them.

    ``rows`` are asked, ``back`` come back with the query (None: no teacher does).
    """

    rows: int
    back: int | None
    up: int
    up_frame: int
    down: int
    down_frame: int


@dataclass(frozen=True)
class Room:
    """What the server's ledger says of a run: epsilon ``spent`` before it and ``together`` with it, of ``whole``."""

    spent: float
    together: float
    whole: float
    wanted: float
    fits: bool

    def sentence(self) -> str:
        """Say it in one line. What runs spend together is less than the sum of their epsilons."""
        told = f"epsilon {ceiling(self.spent)} of {self.whole:g} is spent, {max(0.0, self.whole - self.spent):.3g} left"
        sum_ = f" ({ceiling(self.together)} with what is spent)" if self.spent and (self.fits == self._below) else ""
        return f"ledger: {told}; this run wants {self.wanted:g}{sum_}: it {'fits' if self.fits else 'would be refused'}"

    @property
    def _below(self) -> bool:
        """Whether what is spent together is within the budget; a ledger's own rule may be stricter."""
        return self.together <= self.whole * (1 + 1e-9)


@dataclass(frozen=True)
class Plan:
    """The bytes of a run, round by round for one client; ``bounds`` are reasons why it may come to less."""

    config: Config
    transfer: Stored
    rounds: tuple[Sent, ...]
    fedavg: FedAvg
    bounds: tuple[str, ...] = ()
    ledger: Room | None = None

    @property
    def handed_out(self) -> int:
        """The bytes of the transfer set, which every client needs once before the first round."""
        if self.config.keys == "classes":
            return 0
        return self.transfer.rows * math.prod(self.transfer.shape) * self.transfer.width

    @property
    def up(self) -> int:
        """The bytes that a client sends in all rounds."""
        return sum(sent.up for sent in self.rounds)

    @property
    def down(self) -> int:
        """The bytes that a client receives in all rounds."""
        return sum(sent.down for sent in self.rounds)

    def table(self) -> Table:
        """Return the prediction for a terminal: the cold first round, warm rounds on average, and all rounds."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption=_CAPTION, caption_justify="left")
        table.add_column("", no_wrap=True)
        for head in ("rows", "up/client", "frame", "down/client", "frame", "all clients"):
            table.add_column(head, justify="right", no_wrap=True)
        first, warm, clients = self.rounds[0], self.rounds[1:], self.config.clients
        table.add_row("round 1", *_row([first], clients))
        if warm:
            table.add_row("round 2" if len(warm) == 1 else f"rounds 2-{len(self.rounds)}", *_row(warm, clients))
            table.add_row("in all", *_row(self.rounds, clients, every=True))
        return table

    def sentences(self) -> list[str]:
        """Return what else there is to know: the transfer set, bounds, and FedAvg."""
        rows, shape = self.transfer.rows, "x".join(map(str, self.transfer.shape))
        lines = [f"transfer set: {size(self.handed_out)} to each client, once ({rows} rows of {shape})"]
        if not self.handed_out:
            lines = ["transfer set: none is asked about"]
        elif _carried(self.config):
            lines[0] += "; fedkd carries it, so nothing is handed out"
        lines += [f"upper bound: {reason}" for reason in self.bounds]
        lines += _privacy(self.config, self.rounds[0].rows, self.transfer.classes)
        return lines + ([self.ledger.sentence()] if self.ledger else []) + self._against_fedavg()

    def cheaper(self, start: int = 0) -> tuple[bool, int | None]:
        """Return whether this run has cost less than FedAvg after round 1, and from which round on that is reversed.

        ``start`` bytes are spent before. Rounds beyond the plan cost as much as its last one. None: it never is.
        """
        if self.fedavg.each_way is None:
            return True, None
        return turn([sent.up + sent.down for sent in self.rounds], 2 * self.fedavg.each_way, start)

    def _against_fedavg(self) -> list[str]:
        each, why = self.fedavg.each_way, self.fedavg.why
        if each is None:
            return [f"FedAvg is not compared: {why}" if self.fedavg.of else f"FedAvg is impossible here ({why})"]
        ours, theirs = (self.up + self.down) / len(self.rounds), 2 * each
        ratio = f"{_times(theirs / ours)} more" if theirs >= ours else f"{_times(ours / theirs)} less"
        who = f"FedAvg is impossible here ({why}); with {self.fedavg.of} for all it" if why else "FedAvg"
        kind = f"FedAvg with {self.fedavg.of} for all" if why else "FedAvg"
        lines = [f"{who} would send {size(each)} each way: {ratio} than this run in an average round"]
        counted = {"messages": 0}
        if self.handed_out and not _carried(self.config):
            counted["messages and transfer set"] = self.handed_out
        for words, start in counted.items():
            if len(self.rounds) == 1:
                lines.append(f"{words}: as much as {(self.up + self.down + start) / theirs:.2g} rounds of {kind}")
            else:
                lines.append(_turning(*self.cheaper(start), words))
        return lines


def plan(config: Config) -> Plan:
    """Return what a run of ``config`` will send, as far as that can be known before."""
    check_attack(config)
    data = measures(config.data, labeled=True)
    for spec in (*mixed(config.learner)[: config.clients], config.student):
        check_shape(spec, data.shape)
    public = transfer_measures(config, data)
    sent = plan_rounds(config, public.rows, data.classes)
    return Plan(
        config,
        public,
        tuple(sent),
        fedavg(config, data.shape, data.classes),
        tuple(_bounds(config)),
        _in_ledger(config),
    )


def plan_rounds(config: Config, rows: int, classes: int) -> list[Sent]:
    """Return what one client sends and gets in each round, for a transfer set of ``rows`` rows."""
    rows = classes if config.keys == "classes" else rows
    dummies = _Dummies(config, rows, classes)
    memory, back = Memory.empty(rows, 1), None  # selections look at what was asked when, never at a teacher
    made = told = np.zeros(rows, np.int64)  # the rounds of what goes back on each row, and of what it replaces
    seen = np.zeros(rows, bool)
    found: dict[tuple[int, ...], Sent] = {}
    sent = []
    for round_ in range(1, config.rounds + 1):
        chosen = _selection(config, memory, round_, classes)
        ask = chosen.ask
        # Two rounds alike in these numbers have frames of the same size; large plans are mostly such rounds.
        stays = 0 if back is None else int((told == made)[back].sum())
        digits = (round_.bit_length() - 1) // 7
        alike = (len(ask), -1 if back is None else len(back), int(seen[ask].sum()), digits, stays)
        if alike not in found:
            found[alike] = dummies.sizes(round_, ask, back, seen, made, told)
        sent.append(found[alike])
        seen[ask] = True
        if back is not None:
            told = told.copy()
            told[back] = made[back]
        memory = memory.count(ask).learn(Teacher(np.zeros((len(ask), 1), np.float32), ask), round_)
        learned = np.union1d(chosen.learn, memory.recent(round_, config.replay)) if config.replay > 1 else chosen.learn
        known = learned[memory.stamp[learned] > 0]
        back = _back(config.feedback, ask, known)
        made = memory.stamp if parse(config.feedback)[0] == "teacher" else np.full(rows, round_)
        memory = memory.forget(chosen.forget)
    return sent


def turn(ours: Sequence[int], theirs: int, start: int = 0) -> tuple[bool, int | None]:
    """Return whether ``start + ours[0] <= theirs``, and the first round at which the sums compare the other way.

    ``ours`` (rounds,) goes on with its last value, ``theirs`` is the same in each round. None: they never do.
    """
    total, first = start + ours[0], start + ours[0] <= theirs
    for round_ in range(2, SEARCHED + 1):
        total += ours[min(round_, len(ours)) - 1]
        if (total <= round_ * theirs) != first:
            return first, round_
    return first, None


class _Dummies:
    """Soft labels (M, C) and weights (M,) of a client that no model has made, and the frames that they would fill."""

    def __init__(self, config: Config, rows: int, classes: int) -> None:
        rng = generator(0, "plan")
        self.config, self.rows, self.classes = config, rows, classes
        self.p = normalize(rng.exponential(size=(rows, classes))).astype(np.float32)  # flat on the simplex: no guess
        self.w = np.exp(rng.normal(scale=3.0, size=rows)).astype(np.float32)
        if config.keys == "classes":
            self.w = (np.arange(rows) % 2).astype(np.float32)
        elif _flat(config):
            self.w = np.ones(rows, np.float32)

    def sizes(self, round_: int, ask: Array, back: Array | None, seen: Array, made: Array, told: Array) -> Sent:
        """Return the bytes of a query for the rows ``ask`` with ``back``, and of its answer.

        What goes back on a row was ``made`` (M,) in one round, and in one it was last ``told`` (M,), 0 if never.
        """
        config, key = self.config, self.config.clients - 1
        query = Query(round_, ask, self.classes, FINGERPRINT)
        down = encode_query(query, self.rows)
        if back is not None:
            new, old = self._feedback(made, back), self._feedback(made - (told != made), back)
            query = replace(query, feedback=Teacher(new.p, back))
            before = replace(query, round=round_ - 1, feedback=Teacher(old.p, back))
            known = remember_feedback(None, before, new.encoding, self.rows)
            if known is not None:
                known.seen[back] = told[back] > 0
            ways = [new.coding, new.coding - {"range_code"}]
            down = max((self._shorter(query, new.encoding, way, known) for way in ways), key=len)
        length = None if back is None else len(back)
        chosen = protection_of(config)
        if chosen.place == "shares":
            numbers, robust = numbers_of_round(config, len(ask), self.classes), chosen.dropout == "robust"
            return _masked(query, down, config.clients, length, numbers=numbers, robust=robust)
        release, last = self._release(round_, ask), None
        if "delta" in release.coding and round_ > 1:
            rows = np.flatnonzero(seen)
            before = Query(round_ - 1, rows, self.classes, FINGERPRINT)
            last = remember(None, self._release(round_ - 1, rows), before, self.rows)
        coded = [release, replace(release, coding=release.coding - {"range_code"})]
        up = max((encode_release(one, query, key, known=last) for one in coded), key=len)
        answer = Answer(up, 0.5 if config.evaluate else None)
        asked = query_content(down, round_ - 1 if "delta" in release.coding else 0)
        return Sent(len(ask), length, size_of(answer_content(answer)), len(up), size_of(asked), len(down))

    def _feedback(self, made: Array, rows: Array) -> Release:
        """Return what goes back on ``rows``: another class in each round in which it was ``made``."""
        turn = (np.arange(self.classes) - made[rows, None]) % self.classes
        p = np.take_along_axis(self.p[rows], turn, axis=1)
        return self._prepared(self.config.broadcast, p, np.ones(len(rows), np.float32))

    def _shorter(self, query: Query, encoding: str, coding: frozenset[str], known: Known | None) -> bytes:
        """Return the query in full, or on top of what is known if that is shorter."""
        ways = [encode_query(query, self.rows, encoding, coding=coding, known=base) for base in (None, known)]
        return min(ways, key=len)

    def _release(self, round_: int, rows: Array) -> Release:
        """Return what the client says of ``rows``: in each round another class, of all rows."""
        w = self.w
        if parse(self.config.expertise)[0] not in STATIC and not _flat(self.config):
            w = np.roll(w, round_)
        release = self._prepared(self.config.release, np.roll(self.p, round_, axis=1)[rows], w[rows])
        told = protection_of(self.config).place in SAID
        return replace(release, event=spending(self.config).round[0]) if told else release

    def _prepared(self, chain: str, p: Array, w: Array) -> Release:
        release = prepare(chain, Release(p, w), generator(0, "plan", "release"))
        return replace(release, coding=release.coding - {"zstd"})  # noise is as long compressed


def _selection(config: Config, memory: Memory, round_: int, classes: int) -> Selection:
    """Return the rows of a round as the server would draw them, if the student knew nothing and erred everywhere."""
    if config.keys == "classes":
        everything = np.arange(classes)
        return Selection(everything, everything, everything[:0])
    rng = generator(config.seed, "server", "round", round_, "select")

    def flat(rows: Array) -> Array:
        return np.full((len(rows), classes), 1 / classes, np.float32)

    def wrong() -> Array:
        return np.ones(len(memory.asked), bool)

    student, labeled = config.student != "none", config.labels != "none"
    pool = Pool(memory, round_, flat if student else None, wrong if labeled else None)
    chosen: Selection = select.build(config.select)(pool, rng)
    return chosen


def _back(feedback: str, ask: Array, known: Array) -> Array | None:
    """Return the rows that go back with the next query: what the student learned, or what was asked."""
    name = parse(feedback)[0]
    if name == "none":
        return None
    return known if name in ("teacher", "student") else ask


def _bounds(config: Config) -> list[str]:
    found = []
    for key in ("release", "broadcast"):
        guessed = sorted(GUESSED & form(getattr(config, key)).coding)
        if guessed and not (key == "broadcast" and config.feedback == "none"):
            sends = "sends" if len(guessed) == 1 else "send"
            found.append(f"{key} has {' and '.join(guessed)}, which {sends} less the better labels can be guessed")
    if parse(config.select)[0] == "wrong":
        found.append("only rows that the student gets wrong are asked")
    if parse(config.expertise)[0] in GATES:
        found.append("rows of which all clients abstain do not go back")
    if config.keys == "classes":
        found.append("a client that holds all classes sends no weights")
    return found


def _flat(config: Config) -> bool:
    """Return whether all weights of a client are one number."""
    return parse(config.expertise)[0] == "uniform"


def _masked(query: Query, question: bytes, clients: int, back: int | None, *, numbers: int, robust: bool) -> Sent:
    """Return the bytes of a masked round, all its exchanges together, if nobody is lost in it."""
    downs, ups = conversation(query, question, clients, numbers=numbers, robust=robust)
    asked = sum(size_of(query_content(frame)) for frame in downs)
    answered = sum(size_of(answer_content(Answer(frame, None))) for frame in ups)
    return Sent(len(query.indices), back, answered, sum(map(len, ups)), asked, sum(map(len, downs)))


def _carried(config: Config) -> bool:
    return config.data == "digits" and transfer.is_cut(config.transfer)


def _row(sent: Sequence[Sent], clients: int, *, every: bool = False) -> list[str]:
    over = 1 if every else len(sent)
    up, up_frame = (sum(getattr(s, key) for s in sent) / over for key in ("up", "up_frame"))
    down, down_frame = (sum(getattr(s, key) for s in sent) / over for key in ("down", "down_frame"))
    asked = f"{sum(s.rows for s in sent) / over:.0f}"
    return [asked, *map(size, (up, up_frame, down, down_frame, clients * (up + down)))]


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio < 99.5 else f"{ratio:,.0f} times"


def _privacy(config: Config, rows: int, classes: int) -> list[str]:
    """Return what the budget buys, before anything is trained: noise, steps, and how wrong labels will be."""
    chosen = protection_of(config)
    if chosen.unit is None:
        return []
    budget = spending(config)
    noise = budget.noise_multiplier
    total, once = (spent(spent_in(budget, rounds), config.delta) for rounds in (config.rounds, 1))
    seeded = "" if config.noise == "system" else "; noise = seeded makes it NO PRIVACY"
    lines = [
        f"privacy: epsilon {ceiling(total)} at delta {config.delta:g} for one {chosen.unit} ({chosen.neighbors}), "
        f"{ceiling(once)} after round 1{seeded}"
    ]
    lines += [f"warning: {line}" for line in doubtful_delta(config)]
    if chosen.place == "training":
        return [*lines, f"{config.protect}: noise multiplier {noise:.3g}, {budget.steps} steps a round on each client"]
    if chosen.place == "answers":
        said = min(chosen.labels, rows)
        keep, votes = keep_probability(chosen.classes, 1 / noise), config.clients * said / max(1, rows)
        sd = deviation(chosen.classes, 1 / noise) / math.sqrt(max(1, votes))
        return [
            *lines,
            f"{config.protect}: epsilon {1 / noise:.3g} a label, kept with a chance of {keep:.3g}; {said} labels of a "
            f"client, {votes:.3g} a row; sd {sd:.2g} on the share of a class before smoothing",
        ]
    if chosen.place == "labels":
        sd = noise * math.sqrt(2 * rows)
        return [
            *lines,
            f"{config.protect}: a control, not for use: noise of sd {sd:.3g} on every soft label of a client, "
            f"{sd / math.sqrt(config.clients):.2g} on the mean of all clients",
        ]
    told = f"{config.protect}: noise multiplier {noise:.3g}"
    spare = (
        config.clients / (least_of(config) - 1) if chosen.place == "shares" else 1.0
    )  # all add noise that fewer would do
    if chosen.place in ("mean", "shares") and not _flat(config):
        sd = noise * math.sqrt(spare * rows * (1 - 1 / classes + chosen.balance**2)) / config.clients
        return [*lines, f"{told}; sd {sd:.2g} on each mean label before smoothing, if clients know all rows alike"]
    sd = noise * chosen.clip * full_clip(rows, classes) * math.sqrt(spare) / config.clients
    if chosen.threshold:
        first = chosen.test * noise * math.sqrt(rows) / config.clients
        told += f"; rows are told above {chosen.threshold:g} of the votes, sd {first:.2g} on that share"
    return [*lines, f"{told}; sd {sd:.2g} on each mean label" + (" before smoothing" if chosen.smooth else "")]


def _in_ledger(config: Config) -> Room | None:
    """Return whether earlier runs have left room for this one; reads the server's ledger and changes nothing."""
    if not config.ledger:
        return None
    before: tuple[Event, ...] = ()
    whole = config.ledger_epsilon or config.epsilon
    if (Path(config.ledger) / "ledger.jsonl").exists():
        known = verify(Path(config.ledger))
        before, agreed = tuple(entry.event for entry in known.reservations), known.account.budgets[-1]
        if (agreed.epsilon, agreed.delta) != (whole, config.delta):
            raise PrivacyError(
                f"the ledger in {config.ledger} is for epsilon {agreed.epsilon:g} at delta {agreed.delta:g} in all "
                f"(ledger_epsilon), got {whole:g} at {config.delta:g}: a run would be refused"
            )
    together = spent((*before, *planned(config)), config.delta)
    return Room(spent(before, config.delta), together, whole, config.epsilon, fits_in(config, before))


def _turning(first: bool, round_: int | None, counted: str) -> str:
    ours, theirs = ("this run", "FedAvg") if first else ("FedAvg", "this run")
    if round_ is None:
        return f"{counted}: {ours} is cheaper, however many rounds there are"
    return f"{counted}: {ours} is cheaper up to round {round_ - 1}, {theirs} from round {round_} on"


_CAPTION = "up, down: as Flower serializes messages, frame: our part; several rounds: one on average."
