"""What a model is made of and what of it can be attributed. Knows model, paths and integrals."""
