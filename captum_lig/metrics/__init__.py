"""Numbers that say how good an explanation is: pure functions of tensors."""
