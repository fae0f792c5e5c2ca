"""A run as a file: what ``slim-model run`` reads and what every report holds, so that it can be repeated."""
