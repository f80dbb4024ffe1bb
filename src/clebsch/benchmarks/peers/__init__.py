"""Scripts that measure other packages, each in an environment of its own; see ``make peers``."""
