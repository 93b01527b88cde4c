"""Results: accuracy, cards, tables and figures."""
