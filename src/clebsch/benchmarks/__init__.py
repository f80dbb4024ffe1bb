"""How fast the package is, and how fast others are: what ``clebsch bench`` does.

Numbers of two programs are compared only if they come from one run: the same structures, the same
architecture, the same timing code, one process at a time, taking turns. No test asserts a time.
"""
