"""Experiments on privacy, one module each: `python -m simulations.privacy.NAME`."""
