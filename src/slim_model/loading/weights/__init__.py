"""The weights in a checkpoint, and which of them fit a model."""
