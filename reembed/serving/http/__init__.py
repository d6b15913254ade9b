"""A live release behind HTTP."""
