"""`python -m semantic_aug.chain`, which is in `cluster/`."""

from semantic_aug.cluster.chain import main

if __name__ == "__main__":
    main()
