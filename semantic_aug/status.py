"""`python -m semantic_aug.status`, which is in `cluster/`."""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

from semantic_aug.cluster.status import main

if __name__ == "__main__":
    main()
