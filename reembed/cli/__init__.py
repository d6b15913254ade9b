"""The command line: verbs, results as text, progress. Nothing else prints."""
