"""GSM-Infinite: generated word problems (arXiv 2502.05252), their solver, and the task that trains on them."""

from reverie.tasks.gsm_infinite.generator import Problem, ProblemConfig, draw_problem
from reverie.tasks.gsm_infinite.pages import GsmPages
from reverie.tasks.gsm_infinite.solver import count_operations, solve
from reverie.tasks.gsm_infinite.task import GsmInfinite

__all__ = ["GsmInfinite", "GsmPages", "Problem", "ProblemConfig", "count_operations", "draw_problem", "solve"]
