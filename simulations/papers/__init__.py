"""One file a paper: `python -m simulations.papers.NAME` prints its table, with `--small` in seconds on the digits."""
