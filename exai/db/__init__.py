"""All access to Postgres."""
