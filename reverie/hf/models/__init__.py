"""Models that transformers lacks, and SmolLM2."""
