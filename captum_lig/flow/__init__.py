"""What an attribution of one layer returns, and how its pieces compose. Knows tensors only."""
