"""What pyproject.toml cannot say: the recipes at the top of the checkout are installed inside the package."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["reverie*"]), "reverie.recipes"],
    package_dir={"reverie.recipes": "recipes"},
    package_data={"reverie.recipes": ["**/*.toml"]},
)
