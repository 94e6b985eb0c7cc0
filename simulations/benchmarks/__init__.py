"""Measurements, one module each; results lie in results/."""
