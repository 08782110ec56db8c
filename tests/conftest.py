"""Settings of the whole suite."""

import torch

# The models of the tests are so small that a second thread only slows them down.
torch.set_num_threads(1)
