"""A corpus x a model x measures: a Parquet data set, on one machine or on a cluster."""

from captum_lig.corpus.run import Results, load, run
from captum_lig.corpus.settings import Settings

__all__ = ["Results", "Settings", "load", "run"]
