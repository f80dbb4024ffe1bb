"""``python -m clebsch`` is ``clebsch``."""

from clebsch.cli import main

main()
