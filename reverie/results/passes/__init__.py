"""Trained models evaluated at any number of sleep passes."""
