"""Other values for the small graph that compensate for what was removed, without labels."""
