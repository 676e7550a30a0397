"""EXAI's own Postgres and Valkey: real servers, as child processes that end with the program."""
