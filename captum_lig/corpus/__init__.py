"""A corpus x a model x measures: a Parquet data set, on one machine or on a cluster."""
