"""Installs a2mim. Ranges stand here; the versions that CI tests stand in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "a2mim" / "__init__.py").read_text()).group(1)


class BuildWithRecipes(build_py):
    """Copies configs/ into the package: recipes stand once in the repository, and an installed a2mim finds them."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_tree(str(ROOT / "configs"), str(Path(self.build_lib) / "a2mim" / "configs"))


setup(
    name="a2mim",
    version=VERSION,
    description="Masked-image-modelling pre-training for any architecture",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    cmdclass={"build_py": BuildWithRecipes},
    packages=find_packages(include=["a2mim", "a2mim.*"]),
    package_data={"a2mim": ["py.typed"], "a2mim.protocols": ["*.toml"], "a2mim.report": ["templates/*"]},
    install_requires=[
        "torch>=2.9",  # 2.6 cannot compile or export X-ViT and LinGlo
        "torchvision>=0.24",
        "timm>=1.0.31",  # older ones give the first layer of a folder with five channels random weights, with a warning
        "mmengine>=0.10.7",
        "mmcv-lite>=2.2",
        "einops>=0.8",
        "webdataset>=1.0",
        "braceexpand>=0.1.7",
        "fsspec>=2024.6",
        "urllib3>=2.2",
        "safetensors>=0.4",
        "simplejpeg>=1.7",
        "scikit-image>=0.24",
        "tifffile>=2022.8",
        "opencv-python>=4.8",  # mmcv-lite brings it; also named because it is used by name
        "pillow>=11.3",  # its wheels read AVIF from here on
        "pydantic>=2.7",
        "annotated-types>=0.6",  # the bounds in pydantic's annotations, by name
        "numpy>=1.26",
        "scipy>=1.11",
        "tqdm>=4.66",
        "shtab>=1.6",  # completion in shells
        "jinja2>=3.1",
        "matplotlib>=3.8",  # mmengine brings it; also named because it is used by name
        "setuptools>=68",  # mmengine imports distutils, which Python 3.12 took out
        "packaging>=23",  # mmengine imports it without declaring it
    ],
    extras_require={
        "tensorboard": ["tensorboard>=2.17"],
        "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],  # to write and to prove an ONNX export
        "parquet": ["pyarrow>=15"],  # to write embeddings as Parquet
        "site": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
        "lowest": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "scikit-learn>=1.5",
            "tensorboard>=2.17",
            "torchmetrics>=1.6",
        ],  # what .ci/lowest tests with
        "test": [
            *(
                "pytest>=8",
                "pytest-xdist>=3.5",
                "ruff>=0.6",
                "tensorboard>=2.17",
                "aiohttp",
                "scikit-learn>=1.5",
                "playwright>=1.40",
                "torchmetrics>=1.6",
            ),
            *("mypy>=1.15", "types-PyYAML"),
            *("transformers>=5", "mmpretrain>=1.2"),
            *("s3fs>=2025.1", "moto[server]>=5"),  # a real S3 protocol on the loopback
            *("mkdocs-material>=9.5", "mkdocstrings[python]>=0.26", "build>=1.2", "wheel>=0.43"),
            *("onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20", "pyarrow>=15"),
        ],
    },
    entry_points={"console_scripts": ["a2mim=a2mim.cli:main"]},
)
