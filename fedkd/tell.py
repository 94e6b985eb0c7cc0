"""An exception in words that its owner can use: type, message and the line of the user's own code."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback

LONGEST = 300
"""Letters of a foreign exception's text that are shown."""


def describe(error: BaseException) -> str:
    """Return type, message and place of an exception on one line: "ValueError: no such width (model.py:12)".

    The place is the innermost line of code that is neither fedkd's nor an installed package's: the user's own.
    """
    said = " ".join(str(error).split())
    text = f"{type(error).__name__}: {said[:LONGEST]}" if said else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({os.path.relpath(error.filename)}:{error.lineno})"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f"{text} ({os.path.relpath(own[-1].filename)}:{own[-1].lineno})" if own else text


def _is_users(filename: str) -> bool:
    path = os.path.abspath(filename)
    paths = sysconfig.get_paths()
    foreign = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = os.path.dirname(os.path.abspath(__file__))
    return not filename.startswith("<") and not any(
        path.startswith(os.path.join(folder, "")) for folder in (*foreign, sys.base_prefix + "/lib", ours)
    )
