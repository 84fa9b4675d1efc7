"""A configuration for a model and a board, and what it costs."""
