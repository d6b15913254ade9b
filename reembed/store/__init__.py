"""The root itself: files with create-only writes, records under a sha256."""
