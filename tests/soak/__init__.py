"""Random operations on watched trees, and what must be true of every report about them."""
