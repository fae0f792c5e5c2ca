"""The traced graph -> the same function, written so that channels can be seen and removed."""
