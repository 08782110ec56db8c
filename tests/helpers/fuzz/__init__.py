"""Hostile files and command lines, drawn from a seed: ``python -m tests.helpers.fuzz``."""
