"""Local models. The only folder that imports torch, transformers and sentence-transformers."""
