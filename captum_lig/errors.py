"""The one exception of this library."""

__all__ = ["LigError"]


class LigError(ValueError):
    """Something the caller gave, or a model, cannot be worked with.

    The message is one sentence or two: what was given, and what to do about it.
    """
