"""Models of other programs, read without those programs and without running their files."""
