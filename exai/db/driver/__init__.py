"""The only code that uses asyncpg: addresses, connections, the pool, named statements and error translation."""
