"""Pages and sheets to look at. `python -m semantic_aug.report` writes them."""
