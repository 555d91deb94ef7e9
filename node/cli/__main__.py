"""`python -m node.cli` is `spore`."""

from node.cli import main

main()
