"""A run directory with everything in it, and how a page is read back."""

import json
import re
from html.parser import HTMLParser

from fedkd.report import write_report


def _round(r, *, clients=8, up=8000, word=""):
    status = ["answered", "answered", "late", "silent", "failed"]
    rows = {
        str(k): {
            "status": status[(k + r) % 5], "bytes_up": up, "bytes_down": 900, "local": 0.3 + 0.05 * (k % 8),
            "error": f"soft labels must be finite{word}" if (k + r) % 5 == 4 else None,
        }
        for k in range(clients)
    }  # fmt: skip
    metrics = {
        "student": 0.879, "ensemble": 0.883, "student_nll": 0.41, "student_ece": 0.032, "teacher_nll": 0.5,
        "teacher_ece": 0.071, "teacher_entropy": 1.5 / r, "local_mean": 0.546, "local_best": 0.781, "local_worst": 0.31,
        "coverage": 1.0, "bytes_up": float(up * clients), "bytes_down": 900.0 * clients,
    }  # fmt: skip
    seconds = {"clients": 3.0, "aggregate": 0.02, "distill": 1.2, "evaluate": 0.3}
    return {"round": r, "metrics": metrics, "clients": rows, "seconds": seconds,
            "latency": {str(k): 0.1 * (k + 1) for k in range(clients)}}  # fmt: skip


def _summary(*, clients=8, classes=10, word=""):
    bins = [{"confidence": 0.1 * b + 0.05, "accuracy": 0.09 * b, "count": 10 * b} for b in range(10)]
    return {
        "name": f"digits-001{word}",
        "finished": True,
        "config": {"aggregate": f"mean{word}", "rounds": 3, "seed": 7},
        "provenance": {"fedkd": "0.1.0", "seed": 7, "transfer_sha256": "9b1c",
                       "command": f"fedkd run --set seed=7{word}"},
        "data": {"name": f"digits{word}", "license": "CC BY 4.0", "classes": classes, "private": 1037, "transfer": 400,
                 "class_names": [f"class {i}{word}" for i in range(classes)], "test": 360, "clients": clients},
        "scoreboard": {"student": 0.879, "ensemble": 0.883, "local_mean": 0.546, "local_best": 0.781,
                       "local_worst": 0.31, "pooled": 0.977, "bytes_up_per_client": 8000.0,
                       "bytes_down_per_client": 900.0,
                       "fedavg": {"possible": False, "why": f"4 different architectures{word}",
                                  "bytes_per_client_round": None}},
        "clients": {str(k): {"architecture": f"cnn{word}", "before": 0.5, "after": 0.7} for k in range(clients)},
        "reliability": {"student": bins, "teacher": bins},
        "confusion": [[50 if i == j else (i + j) % 3 for j in range(classes)] for i in range(classes)],
        "released": [{"what": f"soft labels{word}", "form": "float16, 400 x 10", "bytes": 8000, "to": "server"}],
        "privacy": {"guarantee": "NONE", "epsilon": "infinite", "why": f"predictions reveal who is in the data{word}"},
        "warnings": [f"the student lags behind{word}"],
    }  # fmt: skip


def _write(path, rounds, summary=None):
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rounds))
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def _page(path):
    return write_report(path).read_text(encoding="utf-8")


def _panel(page, name):
    return re.search(rf'<section class="card" id="{name}".*?</section>', page, re.S).group(0)


class _Reader(HTMLParser):
    """Collects tags, attributes and whether every tag was closed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.open = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
