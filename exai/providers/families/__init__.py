"""The providers whose APIs differ from each other: one `Family` in each module."""
