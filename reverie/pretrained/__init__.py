"""What belongs to a pretrained model: its files, its tokenizer, its place in a recipe."""
