"""Pages and contact sheets, which `python -m semantic_aug.report` writes."""
