"""EXAI's own Postgres and Valkey: real servers, as children that live as long as the program."""
