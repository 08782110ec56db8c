"""The attention core along a path, in closed form or by running the block. Tensors only."""
