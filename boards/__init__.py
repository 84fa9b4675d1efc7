"""One data file a board."""
