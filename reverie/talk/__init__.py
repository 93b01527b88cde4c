"""Reading texts into memories, asking about them, and conversations, with any model on disk."""

from reverie.talk.answer import Answer, ask
from reverie.talk.sleeper import Sleeper, load_model

__all__ = ["Answer", "Sleeper", "ask", "load_model"]
