"""Composed maps against direct ones: the consistency experiment of the LIG paper, with controls."""

from captum_lig.experiments.consistency.corpus_run import Corpus, run_corpus
from captum_lig.experiments.consistency.pairings import Record, measure_text, uniform_map
from captum_lig.experiments.consistency.ranking import Pooled, Ranked, pool

__all__ = [
    "Corpus",
    "Pooled",
    "Ranked",
    "Record",
    "measure_text",
    "pool",
    "run_corpus",
    "uniform_map",
]
