"""reverie: language models that sleep (LLM Sleep, arXiv 2605.26099)."""
