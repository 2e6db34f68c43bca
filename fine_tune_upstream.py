"""The name under which fine_tune.py was first published; the same command."""

from fine_tune import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    main()
