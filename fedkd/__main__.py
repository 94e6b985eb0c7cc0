"""``python -m fedkd`` is the command line."""

from fedkd.cli import main

main()
