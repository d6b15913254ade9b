"""Is the new model as good as the old one: judged queries, metrics, the gate, the comparison, its report."""
