"""Benchmarks: how fast and how frugal, beside what others ship and beside what the machine can do."""
