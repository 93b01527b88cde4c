"""Sleep for Hugging Face models."""
