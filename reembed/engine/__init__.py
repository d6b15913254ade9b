"""Embedding on a Ray cluster: pipeline, workers, watchdog. The only folder that imports Ray."""
