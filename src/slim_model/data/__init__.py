"""The user's samples: opened, batched, split, augmented, and what is read off them."""
