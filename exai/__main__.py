"""`python -m exai` is the `exai` command."""

from exai.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
