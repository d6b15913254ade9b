"""A model that takes its time, put into Ray's workers through their PYTHONPATH."""

# Ray workers import this before anything of reembed runs: a model that takes its time.
SLOW = """
import importlib.abc, os, sys, time

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "reembed.engine.worker":
            return None
        sys.meta_path.remove(self)
        from reembed.encoders import hashing
        plain = hashing.HashingEncoder.embed
        def embed(self, tokens):
            if len(tokens) > 2 and len(tokens) != 32:  # not the golden texts
                time.sleep({seconds})
                while {loops}:
                    pass
            return plain(self, tokens)
        hashing.HashingEncoder.embed = embed
        return None

sys.meta_path.insert(0, Slow())
"""
