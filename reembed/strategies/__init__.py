"""How a migration goes, one strategy a file."""
