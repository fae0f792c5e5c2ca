"""What criteria need to know of the channels, gathered in one pass over the data."""
