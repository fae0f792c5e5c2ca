"""The small model equals the masked dense one, or nothing is handed out."""
