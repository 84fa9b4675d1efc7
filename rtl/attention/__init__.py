"""Dot engine: attention with a streaming softmax, and the rows of the head."""
