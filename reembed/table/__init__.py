"""The table of vectors: written exactly once, read at a version."""
