"""Launching: what must be computed, who computes it, and how."""
