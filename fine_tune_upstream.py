"""The same command as fine_tune.py, under its first published name."""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

from fine_tune import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    main()
