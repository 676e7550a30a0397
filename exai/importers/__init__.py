"""Import of conversations from other programs: their files are recognised, read as streams, and stored once."""
