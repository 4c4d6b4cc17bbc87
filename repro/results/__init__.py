"""Results: records on disk, collected into tables, rendered, and checked against references."""
