"""GSM-Infinite: word problems made by program, their solver, and the task that trains on them."""

from reverie.tasks.gsm_infinite.generator import Problem, ProblemConfig, draw_problem
from reverie.tasks.gsm_infinite.task import GsmInfinite

__all__ = ["GsmInfinite", "Problem", "ProblemConfig", "draw_problem"]
