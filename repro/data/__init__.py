"""Data: sources -> shards (prepare), shards -> batches (stream)."""
