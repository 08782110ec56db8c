"""How faithful circuits are that attributions find, of a decoder: ours beside rivals.

``tasks`` says what is asked, ``edges`` and ``nodes`` score by gradients along one path of the whole
model, ``measure`` runs the circuits, ``known`` looks for heads that are known, ``report`` puts it
into words. Run with ``python -m benchmarks.circuits``.
"""
