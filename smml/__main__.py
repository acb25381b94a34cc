"""``python -m smml`` is the command ``smml``."""

from smml.cli import main

main()
