"""Composed maps against direct ones: the consistency experiment of the LIG paper, with controls."""

from captum_lig.experiments.consistency.measure import OF_TOKENS, OF_WORDS, records
from captum_lig.experiments.consistency.pairings import Record, measure_text, uniform_map
from captum_lig.experiments.consistency.ranking import Pooled, Ranked, pool

__all__ = [
    "OF_TOKENS",
    "OF_WORDS",
    "Pooled",
    "Ranked",
    "Record",
    "measure_text",
    "pool",
    "records",
    "uniform_map",
]
