"""Git as a source: commands that are safe in any repository, and what changed."""
