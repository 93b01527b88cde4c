"""Pretrained models: their files, tokenizers and recipe sections."""
