"""Settings: read once from the environment and files, validated, immutable and passed by section."""
