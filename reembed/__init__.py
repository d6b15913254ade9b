"""reembed: change the embedding model behind a live vector index, safely and fast."""

__version__ = "0.1.0"
