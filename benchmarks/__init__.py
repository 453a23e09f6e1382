"""Measurements that print ratios: each module has ``measure()``, and ``run.py`` runs those that it lists."""
