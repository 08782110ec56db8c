"""How well attributions of a prediction agree with patching: ours beside rivals.

``cases`` says what is asked of a model, ``net`` runs it block by block, ``truth`` patches, the
rivals are a module each, ``measures`` and ``report`` compare. Run with
``python -m benchmarks.patching``.
"""
