"""Files of conversations: the service, the local roots that may be read, and the move into the database."""
