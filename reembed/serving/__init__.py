"""A live release, open for queries."""
