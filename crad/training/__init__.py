"""Training: features, the loop, the checkpoint, and the processes that share it."""
