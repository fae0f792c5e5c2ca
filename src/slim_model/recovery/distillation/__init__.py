"""Parts of the small model learn, step by step, to give what the dense one gives; no labels."""
