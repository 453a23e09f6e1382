"""What `make demo` runs, and the real containers that the tests share with it."""
