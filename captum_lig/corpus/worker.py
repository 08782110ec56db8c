"""The worker: a model loaded once, and what a batch of texts gives with it."""

from __future__ import annotations

from captum_lig.answers.subject import Subject
from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.settings import Settings

__all__ = ["Worker"]


class Worker:
    """Loads the model of ``settings``; called with a batch, gives its part. Knows no engine.

    A text that raises has its reason in the table ``texts``, and the others of its batch go on; a
    batch for which memory does not suffice is halved.

    Args:
        settings: of the run.
        subject: a model that is there already; None: ``settings.model`` is loaded.

    Raises:
        LigError: if the model cannot be loaded, or has other weights than ``settings.weights``.
    """

    def __init__(self, settings: Settings, subject: Subject | None = None) -> None:
        raise NotImplementedError

    def __call__(self, batch: Batch) -> Part:
        """The rows of a batch's texts. Raises nothing that a text is the cause of."""
        raise NotImplementedError
