"""Installs the scripts at the top as commands, which pyproject.toml cannot do.

They become `semantic_aug/scripts/`, with the files of `scripts/` that they read; see
semantic_aug/cli/scripts.py.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class Build(build_py):
    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        left_out = ("setup", "fine_tune_upstream")  # this file; an older name of a script
        return [
            each for each in found if package != "semantic_aug.scripts" or each[1] not in left_out
        ]


setup(
    cmdclass={"build_py": Build},
    packages=[*find_packages(include=["semantic_aug*"]), "semantic_aug.scripts"],
    package_dir={"semantic_aug.scripts": "."},
    package_data={
        "semantic_aug": ["py.typed", "augmentations/*.txt", "report/*.html"],
        "semantic_aug.scripts": ["scripts/reproduce/*.args", "scripts/slurm/*.sh"],
    },
)
