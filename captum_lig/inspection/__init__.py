"""What a model is made of and what of it can be attributed; nothing is attributed here."""
