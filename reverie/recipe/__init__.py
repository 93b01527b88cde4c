"""Typed recipes: a TOML file, the bases it builds on, and overrides, checked into one frozen `Recipe`."""

from reverie.recipe.adapt import AdaptConfig
from reverie.recipe.load import changed, list_recipes, load_recipe, override_value, recipe_again
from reverie.recipe.optim import OptimConfig, OptimizerConfig
from reverie.recipe.random_passes import RandomPasses
from reverie.recipe.schema import BySuccess, Recipe, StageConfig, TrainConfig

__all__ = [
    "AdaptConfig",
    "BySuccess",
    "OptimConfig",
    "OptimizerConfig",
    "RandomPasses",
    "Recipe",
    "StageConfig",
    "TrainConfig",
    "changed",
    "list_recipes",
    "load_recipe",
    "override_value",
    "recipe_again",
]
