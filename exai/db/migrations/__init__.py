"""The migration runner, the check of the schema's revision, and the adoption of an older system's tables."""
