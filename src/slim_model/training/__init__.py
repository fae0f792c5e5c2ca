"""Fine-tuning the small model."""
