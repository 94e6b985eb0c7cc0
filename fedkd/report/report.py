"""From a run directory to one page: ``write_report(run)`` reads metrics.jsonl and summary.json, writes report.html.

The page is self-contained (no script, nothing loaded), works while a run is unfinished, and never looks better than the
run was: what is not known is said to be unknown, and privacy that is not stated in full is printed as none. Reading is
in :mod:`fedkd.journal`, the panels are in :mod:`fedkd.report.panels` and
:mod:`fedkd.report.clients`; here are the words above them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fedkd.errors import FedkdError
from fedkd.files import write_atomic
from fedkd.journal import SUMMARY, Run, listed, part, read_run, real
from fedkd.report import clients, panels
from fedkd.report.page import ROWS, DataTable, Panel, page
from fedkd.report.template import REPORT
from fedkd.units import ceiling, gap, percent, plain, points, short, size

PAGE = "report.html"
SECTIONS = {
    "Does it work?": (panels.accuracy, panels.accuracy_by_bytes),
    "What does each client get?": (clients.held, clients.gain, clients.presence, clients.outliers),
    "Where does the time go?": (clients.latency, panels.phases),
    "Can its answers be trusted?": (panels.reliability, panels.confusion, panels.loss, panels.entropy),
    "What does it give away?": (panels.released,),
}
ASKS = {
    "confusion": "student",
    "clients": "local_mean",
    **dict.fromkeys(("accuracy", "bytes", "reliability", "loss"), "ensemble"),
}
"""Panel to the score without which it has nothing to draw."""


def write_report(run: Path) -> Path:
    """Read the run directory ``run``, write its ``report.html`` (whole or not at all) and return that path."""
    page = render(read_run(run))
    target = Path(run) / PAGE
    try:
        write_atomic(target, page.encode("utf-8", "replace"), durable=False)
    except OSError as error:
        raise FedkdError(f"cannot write {str(target)!r}: {error.strerror}") from None
    return target


def render(run: Run) -> str:
    """Return the page of a run. The same run gives the same page, byte for byte."""
    provenance = part(run.summary, "provenance")
    lines = run.config_text.splitlines() or [f"{key} = {plain(value)}" for key, value in run.config.items()]
    rows = [[_words(key), short(plain(value), 300)] for key, value in provenance.items() if key != "command"]
    return page(
        REPORT,
        page_title=f"{short(run.name, 80)} – fedkd report",
        name=short(run.name, 120),
        finished=run.finished,
        facts=_facts(run),
        privacy=_privacy(run),
        notes=_notes(run),
        verdict=_verdict(run),
        tiles=_tiles(run),
        sections=[
            {"title": title, "panels": [_explained(run, card) for panel in cards if (card := panel(run))]}
            for title, cards in SECTIONS.items()
        ],
        command=short(str(provenance.get("command") or ""), 2000),
        provenance=DataTable("Provenance", ["what", "value"], rows[:ROWS], text=frozenset({1})),
        config="\n".join(short(line, 300) for line in lines[:200]),
    )


def _explained(run: Run, card: Panel) -> Panel:
    """Return a card that has nothing to draw with the reason, where the configuration tells it."""
    why = run.missing(ASKS[card.id]) if card.id in ASKS and not card.svg else "not known"
    return card if why == "not known" else replace(card, unknown=f"{why[0].upper()}{why[1:]}.")


def _words(key: str) -> str:
    return short(str(key).replace("_", " "), 60)


def _count(many: int, one: str) -> str:
    return f"{many:,} {one}" if many == 1 else f"{many:,} {one}{'es' if one.endswith('s') else 's'}"


def _facts(run: Run) -> list[str]:
    data = part(run.summary, "data")
    facts = [short(str(data["name"]), 60)] if data.get("name") else []
    for key, word in (("classes", "class"), ("private", "private sample"), ("transfer", "transfer sample")):
        if (many := real(data.get(key))) is not None:
            facts.append(_count(int(many), word))
    facts += [_count(len(run.clients), "client"), _count(len(run.rounds), "round")]
    acts = [row["dishonest"] for row in part(run.summary, "clients").values() if _told(row, "dishonest")]
    facts += [f"{sum(map(bool, acts))} of {_count(len(acts), 'client')} lie"] if acts else []
    seed = part(run.summary, "provenance").get("seed", run.config.get("seed"))
    return facts + ([f"seed {short(plain(seed), 20)}"] if seed is not None else [])


def _told(row: object, key: str) -> bool:
    return isinstance(row, dict) and key in row


def _privacy(run: Run) -> dict[str, Any]:
    """Return the banner. It is calm only for a guarantee that is stated in full; all else fails closed."""
    privacy = part(run.summary, "privacy")
    why = short(plain(privacy.get("why")), 600) if privacy.get("why") else ""
    if run.epsilon is None:
        headline = run.guarantee if run.guarantee.upper().startswith("NO ") else "NONE"
        if not privacy:
            why = "This run has not stated its privacy (yet). Until it does, read it as none."
        return {"alarm": True, "headline": f"privacy: {headline}", "text": f"Epsilon is infinite. {why}".strip()}
    if run.unstated:
        text = f"An epsilon was claimed without {', '.join(run.unstated)}; such a number promises nothing. {why}"
        return {"alarm": True, "headline": "privacy: NONE", "text": text.strip()}
    text = f"delta {privacy['delta']}, unit: {privacy['unit']}, neighbors: {privacy['neighbors']}. {why}"
    if "ledger" in privacy:
        text += f" {short(plain(privacy['ledger']), 300)}"
    headline = f"privacy: {run.guarantee}, epsilon {ceiling(run.epsilon or 0.0)}"
    return {"alarm": False, "headline": headline, "text": short(text.strip(), 900)}


def _notes(run: Run) -> list[str]:
    notes = [] if run.finished else [f"The run is unfinished: what follows covers {_count(len(run.rounds), 'round')}."]
    notes += run.notes
    warnings = [str(w) for w in listed(run.summary, "warnings")]
    notes += [short(w, 500) for w in warnings[:20]]
    if len(warnings) > 20:
        notes.append(f"{len(warnings) - 20} more warnings are in {SUMMARY}.")
    return notes


def _verdict(run: Run) -> dict[str, Any]:
    """Return the plain-language sentence: what the student is worth, compared with what was there without it."""
    board = run.scoreboard
    student, mean, best = (real(board.get(key)) for key in ("student", "local_mean", "local_best"))
    pooled, up = real(board.get("pooled")), real(board.get("bytes_up_per_client"))
    sentences, bad = [], False
    only, first = len(run.clients) == 1, None if run.alone else run.first("local_mean")
    before = f"{'the only' if only else 'the average'} client alone, as it was in round 1"
    if student is None and run.config.get("student") == "none":
        lead = "This run has no student (student = none)."
        if mean is not None:
            bad = first is not None and mean < first
            lead = f"The clients' own models answer {percent(mean)} of the test set correctly on average."
            if only:
                lead = f"The client's own model answers {percent(mean)} of the test set correctly."
            sentences += [f"That is {gap(mean - first)} {before}."] if first is not None else []
            sentences += [f"The best one answers {percent(best)}."] if best is not None and not only else []
            sentences.append("There is no student (student = none).")
    elif student is None:
        lead = "The student's accuracy is not known in this run."
        sentences.append("It takes evaluate = true and a server that holds labeled test data.")
    elif mean is None:
        lead = f"The student answers {percent(student)} of the test set correctly."
        why = run.missing("local_mean")
        sentences.append(f"How good the clients' own models are is {why}, so the gain is not known either.")
    else:
        bad = student < (mean if best is None else best)
        lead = f"The student answers {percent(student)} of the test set correctly,"
        than_best = "." if best is None or only else f" and {gap(student - best)} the best one."
        sentences.append(f"{gap(student - mean)} {clients.average(run)}{than_best}")
        if best is not None and bad:
            better = f"So {'the' if only else 'the best'} client is better off with its own model."
            worse = "Distillation made things worse: look at the teacher and at the transfer set."
            sentences.append(worse if student < (mean if run.alone else first or 0.0) else better)
        sentences += [f"It is {gap(student - first)} {before}."] if first is not None else []
    if student is not None and pooled is not None:
        sentences.append(f"It is {gap(student - pooled)} a model trained on everyone's data in one place.")
    if up is not None:
        sentences.append(f"Each client sent {size(up)} a round{_fedavg_clause(run, up)}.")
    return {"lead": lead, "rest": " ".join(sentences), "bad": bad}


def _fedavg_clause(run: Run, up: float) -> str:
    possible, why, cost = run.fedavg
    if possible is False:
        return f"; FedAvg is impossible here{' (' + why + ')' if why else ''}"
    if possible and cost and up:
        return f"; FedAvg would send {size(cost)}, {_times(cost / up)}"
    return ""


def _times(ratio: float) -> str:
    if ratio >= 1.05:
        return f"{ratio:,.0f} times as much" if ratio >= 9.95 else f"{ratio:.1f} times as much"
    return "about as much" if ratio > 0.95 else f"{percent(ratio)} of that"


def _tiles(run: Run) -> list[dict[str, Any]]:
    board = run.scoreboard
    value = {key: real(board.get(key)) for key in ("student", "local_mean", "local_best", "ensemble", "pooled")}
    student = value["student"]

    def tile(key: str, label: str, aside: str, *, against: bool = True) -> dict[str, Any]:
        known = value[key]
        if known is None:
            return {"label": label, "value": "–", "share": None, "aside": run.missing(key)}
        if against and student is not None:
            aside = f"student {points(student - known)} points"
        return {
            "label": label,
            "value": percent(known),
            "share": round(100 * min(max(known, 0.0), 1.0), 1),
            "aside": aside,
        }

    up, down = (real(board.get(f"bytes_{way}_per_client")) for way in ("up", "down"))
    possible, why, cost = run.fedavg
    total = run.moved("up")
    # "a round" is the mean over answers; the same in all, so that one round is not two different numbers
    whole = (
        "" if total is None or len(run.rounds) < 2 or not run.clients else f", {size(total / len(run.clients))} in all"
    )
    if possible is False:
        fedavg = {"value": "impossible", "aside": why or "reason not known"}
    elif possible and cost is not None:
        fedavg = {
            "value": size(cost),
            "aside": f"each way, per client and round{', ' + _times(cost / up) if up else ''}",
        }
    else:
        fedavg = {"value": "–", "aside": "not known"}
    own = [tile("local_mean", "Average client", "test accuracy"), tile("local_best", "Best client", "test accuracy")]
    return [
        tile("student", "Student", "of the test set right", against=False),
        *([tile("local_mean", "The only client", "test accuracy")] if len(run.clients) == 1 else own),
        tile("ensemble", "Ensemble", "on the transfer set", against=False),  # not the test set
        tile("pooled", "Pooled data", "test accuracy"),
        {
            "label": "Sent per client",
            "value": size(up),
            "share": None,
            "aside": "not known" if up is None else f"a round{whole}; received {size(down)} a round",
        },
        {"label": "FedAvg would send", "share": None, **fedavg},
    ]
