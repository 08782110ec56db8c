"""The flows of a model's layers: in lengths, and towards a number that the model says."""
