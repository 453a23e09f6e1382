"""A node daemon that reports what happens to files inside containers."""

__version__ = "1.0.0"
