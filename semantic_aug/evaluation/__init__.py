"""A classifier of few photos: trained, evaluated, and its results over all trials."""
