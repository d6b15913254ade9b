"""What happens to a release: verified, promoted, rolled back, removed."""
