"""The one exception of this library, and the one of others that it knows."""

__all__ = ["LigError", "out_of_memory"]

_OF_THE_CPU = ("DefaultCPUAllocator", "out of memory", "could not create a primitive")
"""What torch says where it has no class of its own for it."""


class LigError(ValueError):
    """Something the caller gave, or a model, cannot be worked with.

    The message is one sentence or two: what was given, and what to do about it.
    """


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left.

    Whoever tries something out and takes an error for an answer has to raise this one: it says
    nothing of what was tried.
    """
    # By name: torch takes seconds to import.
    if any(kind.__name__ in ("MemoryError", "OutOfMemoryError") for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_THE_CPU)
