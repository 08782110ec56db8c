"""Finding a model's blocks, splitting and validating them. Knows transformers, no mathematics."""
