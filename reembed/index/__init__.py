"""A FAISS index: built, searched, stored. The only folder that imports FAISS."""
