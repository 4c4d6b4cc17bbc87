"""Metrics: features, statistics, distances and the scoring protocols of the papers."""
