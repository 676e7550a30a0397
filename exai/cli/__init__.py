"""The `exai` command: its arguments, its subcommands and what they print."""
