"""What all readers of sources share: bytes, lines, JSON in parts, branches, times and contents. No database."""
