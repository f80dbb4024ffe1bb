"""Labelled structures: reading, checking, splitting, references and statistics."""
