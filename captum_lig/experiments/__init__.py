"""Experiments of the paper as commands. No library code imports it."""
