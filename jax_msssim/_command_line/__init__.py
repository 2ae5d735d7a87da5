"""What the command ``jax-msssim`` does: files, batches, tables and pictures."""
