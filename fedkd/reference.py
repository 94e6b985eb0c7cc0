"""Descriptions of parts, read off the registries: for ``fedkd parts`` and for docs/reference.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from fedkd.config import Config
from fedkd.parts import PRESETS, REGISTRIES
from fedkd.registry import Registry


def describe(registry: Registry) -> Iterator[str]:
    """Return one line for each part: how to write it and the first sentence of its docstring."""
    for name, function in registry:
        yield f"{signature(name, function)}: {summary(function)}"


def signature(name: str, function: object) -> str:
    """Return ``name(option=default, ...)`` as a configuration would spell it."""
    options = [
        f"{p.name}={'...' if p.default is p.empty else repr(p.default)}"
        for p in inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        if p.kind is p.KEYWORD_ONLY
    ]
    return f"{name}({', '.join(options)})" if options else name


def summary(function: object) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def markdown() -> str:
    """Return docs/reference.md."""
    lines = ["# Reference", "", "Made from the code by `python -m fedkd.reference`; a test keeps it true.", ""]
    lines += ["## Settings", "", "| key | default | meaning |", "|---|---|---|"]
    for key, field in Config.model_fields.items():
        default = str(field.default).replace("|", "\\|")
        lines.append(f"| `{key}` | `{default}` | {field.description} |")
    lines += ["", "## Presets", "", "| preset | what it is | what it sets |", "|---|---|---|"]
    for name, (what, keys) in PRESETS.items():
        sets = ", ".join(f"`{key} = {value}`" for key, value in keys.items()) or "the defaults"
        sets = sets.replace("|", "\\|")
        lines.append(f"| `{name}` | {what} | {sets} |")
    for key, registry in REGISTRIES.items():
        lines += ["", f"## `{key}`", "", "| part | what it does |", "|---|---|"]
        for name, function in registry:
            text = summary(function).replace("|", "\\|")
            lines.append(f"| `{signature(name, function)}` | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
