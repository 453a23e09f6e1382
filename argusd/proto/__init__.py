"""Code generated from ``proto/*.proto`` when the project is built."""
