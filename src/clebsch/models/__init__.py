"""Architectures, one file each, with their configuration and presets."""
