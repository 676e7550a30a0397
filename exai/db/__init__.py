"""Everything that speaks to Postgres; no other package does."""
