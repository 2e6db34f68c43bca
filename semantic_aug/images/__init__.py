"""Pictures without a model: reading, framing, sheets, likeness."""
