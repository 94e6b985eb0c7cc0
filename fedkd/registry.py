"""Parts chosen by one string in Python call syntax, such as ``"era(temperature=0.1)"``.

The string is parsed with :mod:`ast` and never evaluated. A part is a plain function whose options are
keyword-only arguments, so its signature is its documentation and its validation.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from fedkd.errors import SpecError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


class Registry:
    """The members of one kind of part, by name.

    >>> aggregator = Registry("aggregator")
    >>> @aggregator
    ... def mean(p, w, *, power: float = 1.0): ...
    >>> aggregator.build("mean(power=2.0)").keywords
    {'power': 2.0}
    """

    def __init__(self, kind: str) -> None:
        """Start an empty registry; ``kind`` is the word used in its error messages."""
        self.kind = kind
        self._parts: dict[str, Callable[..., Any]] = {}

    def __call__(self, function: F) -> F:
        """Register ``function`` under its own name (without a trailing underscore)."""
        self._parts[function.__name__.rstrip("_")] = function
        return function

    def __iter__(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        return iter(sorted(self._parts.items()))

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._parts)

    def build(self, spec: str) -> functools.partial[Any]:
        """Return the part with its options bound; raise :class:`SpecError` with the nearest match."""
        self._refuse_nameless(spec)
        name, given = parse(spec)
        if name not in self._parts:
            hint = did_you_mean(name, self._parts)
            raise SpecError(f"unknown {self.kind} {name!r}.{hint} Known: {', '.join(self.names())}.")
        options = _options(self._parts[name])
        if "" in given:  # the short form "npz:path" sets the first option
            if not options:
                raise SpecError(f"{self.kind} {name!r} takes no option, got {spec!r}.")
            given = {next(iter(options)): given[""]}
        for key in sorted(given.keys() - options.keys()):
            takes = ", ".join(options) or "none"
            hint = did_you_mean(key, options)
            raise SpecError(f"{self.kind} {name!r} has no option {key!r}.{hint} It takes {takes}.")
        for key, option in options.items():
            if key not in given and option.default is option.empty:
                raise SpecError(f"{self.kind} {name!r} needs {key!r}, as in {_example(name, key, option)}.")
            if key in given:
                given[key] = _typed(given[key], option.annotation, f"{self.kind} {name!r}: {key!r}")
        return functools.partial(self._parts[name], **given)

    def _refuse_nameless(self, spec: str) -> None:
        """Say how to write ``dirichlet(0.1)``, whose option has no name."""
        name, bare = _nameless(spec)
        options = list(_options(self._parts[name])) if name in self._parts else []
        if bare and len(bare) <= len(options):
            named = ", ".join(f"{key}={value}" for key, value in zip(options, bare, strict=False))
            raise SpecError(f"{self.kind} {name!r}: options need their names, as in {name}({named}).")

    def chain(self, spec: str) -> list[functools.partial[Any]]:
        """Return the parts of ``"a | b(x=1)"``, to be applied from the left."""
        return [self.build(one) for one in split(spec, "|")]


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Return ``(name, options)`` of ``"name"``, ``"name(option=value)"`` or ``"name:first option"``.

    >>> parse("era(temperature=0.1)")
    ('era', {'temperature': 0.1})
    >>> parse("npz:pool.npz")
    ('npz', {'': 'pool.npz'})
    """
    text = spec.strip()
    name, colon, rest = text.partition(":")
    if colon and name.isidentifier() and rest:
        return name, {"": rest}
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            given = {k.arg: _literal(k.value) for k in node.keywords if k.arg}
            if len(given) == len(node.keywords):  # else an option came twice, or as **options
                return node.func.id, given
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    raise SpecError(f"cannot read {spec!r}; write it like 'name' or 'name(option=value)'.{_unquoted(text)}")


def _nameless(spec: str) -> tuple[str, list[str]]:
    """Return the name and the values of ``"name(value, ...)"``, which has no names of options; else nothing."""
    try:
        node = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return "", []
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.keywords:
        return "", []
    literals = all(isinstance(one, ast.Constant | ast.Tuple | ast.UnaryOp) for one in node.args)
    return (node.func.id, [ast.unparse(one) for one in node.args]) if literals else ("", [])


UNQUOTED = re.compile(
    r"(?P<name>[A-Za-z_]\w*)\(\s*(?P<key>[A-Za-z_]\w*)\s*=\s*(?P<value>[^\s'\"(),=|]*[^\s'\"(),=|\d.])\s*\)"
)


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal; ``inf`` is one here."""
    return math.inf if isinstance(node, ast.Name) and node.id == "inf" else ast.literal_eval(node)


def _unquoted(text: str) -> str:
    """Return how to write ``npz(path=data.npz)``, whose value is text without quotes; empty for anything else."""
    found = UNQUOTED.fullmatch(text)
    if found is None:
        return ""
    name, key, value = found.group("name", "key", "value")
    return f" Quote text, as in {name}({key}={value!r}), or use the short form {name}:{value}."


def _example(name: str, key: str, option: inspect.Parameter) -> str:
    """Return how to give ``key``; text needs quotes, which is worth showing."""
    if str(getattr(option.annotation, "__name__", option.annotation)) != "str":
        return f"'{name}({key}=...)'"
    value = "data.npz" if name == "npz" else "..."
    return f"{name}({key}={value!r}) (quote text), or the short form {name}:{value}"


def split(spec: str, separator: str) -> list[str]:
    """Split at ``separator`` outside of brackets and quotes.

    >>> split("cnn(sizes=(8, 16)), forest", ",")
    ['cnn(sizes=(8, 16))', 'forest']
    """
    pieces, depth, quote = [""], 0, ""
    for letter in spec:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if letter == separator and not depth and not quote:
            pieces.append("")
        else:
            pieces[-1] += letter
    if not all(piece.strip() for piece in pieces):
        raise SpecError(f"cannot read {spec!r}; one part between two {separator!r} is empty.")
    return [piece.strip() for piece in pieces]


SCALARS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "tuple": tuple, "None": type(None)}


def _options(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {p.name: p for p in parameters.values() if p.kind is p.KEYWORD_ONLY}


def _typed(value: Any, annotation: Any, what: str) -> Any:
    """Return ``value`` as the annotated scalar type (int passes for float), else raise.

    Annotations are read as text, so that a part may be annotated with types of a framework that is not loaded.
    """
    names = [name.strip() for name in str(getattr(annotation, "__name__", annotation)).split("|")]
    kinds = [SCALARS[name] for name in names if name in SCALARS]
    if not kinds or type(value) in kinds:
        return value  # an option that is no scalar is checked by the part itself
    if float in kinds and type(value) is int and abs(value) < 2**1000:  # the largest float is just below 2**1024
        return float(value)
    raise SpecError(f"{what} must be {' or '.join(names)}, got {value!r}.")
