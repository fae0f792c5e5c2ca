"""Channel labels, and the walk that carries them through a graph."""
