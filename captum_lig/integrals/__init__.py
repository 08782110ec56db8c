"""Quadrature, adaptive refinement, scalarizations and the boundaries integrated. Knows paths."""
