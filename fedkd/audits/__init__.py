"""Attacks on what a run would release: mechanisms and labels, membership, canaries, on federations of shadows."""
