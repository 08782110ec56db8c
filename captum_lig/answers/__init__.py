"""Why a model says what it says: a text in, what carries its prediction out."""

from captum_lig.answers.answer import Answer
from captum_lig.answers.parts import Part
from captum_lig.answers.says import Option, Said
from captum_lig.answers.why import why

__all__ = ["Answer", "Option", "Part", "Said", "why"]
