"""Where documents come from: a Lance dataset at a version, and what is imported into one."""
