"""Pictures without a model: reading, framing, sheets, and how alike two of them are."""
