"""What to decide before a run."""
