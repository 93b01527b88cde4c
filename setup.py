"""What pyproject.toml cannot say: what else than code is installed inside the package.

The recipes are from the top of the checkout; the example is the model and the text of `reverie ask --example`.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["reverie*"]), "reverie.recipes"],
    package_dir={"reverie.recipes": "recipes"},
    package_data={
        "reverie": ["py.typed"],
        "reverie.results": ["*.mplstyle"],
        "reverie.recipes": ["**/*.toml"],
        "reverie.serve.page": ["*.html", "*.css", "*.js", "*.svg"],
        "reverie.tasks.notes": ["*.txt"],
        "reverie.example": ["*.safetensors", "*.txt", "*.json", "*.md"],
        "reverie.pretrained": ["smollm2-notes/*"],
    },
)
