"""Notes: facts in plain English, asked for when their text is out of sight."""

from reverie.tasks.notes.task import Notes

__all__ = ["Notes"]
