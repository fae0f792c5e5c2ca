"""Which channels stay or go together, and what holds the others."""
