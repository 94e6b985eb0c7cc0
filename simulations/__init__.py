"""Experiments and measurements; not part of the wheel."""
