"""The metadata that need the version or the address of the repository; setup.cfg has all others."""

import re
from pathlib import Path

from setuptools import setup

ADDRESS = "https://github.com/OWNER/wsi-idc"  # a placeholder; no other file has the address

root = Path(__file__).parent
code = (root / "wsi_idc/__init__.py").read_text(encoding="utf-8")
version = re.findall(r'^__version__ = "(.+)"$', code, re.MULTILINE)[0]
files = f"{ADDRESS}/blob/v{version}"
# The README on a package index is without the files of the repository: links need the address.
readme = (root / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"(!\[[^]]*\]\()(?!https?:|#)", rf"\g<1>{ADDRESS}/raw/v{version}/", readme)
readme = re.sub(r"(\]\()(?!https?:|#)", rf"\g<1>{files}/", readme)

setup(
    version=version,
    long_description=readme,
    project_urls={
        "Homepage": ADDRESS,
        "Documentation": f"{files}/docs/README.md",
        "Changelog": f"{files}/CHANGELOG.md",
        "Issues": f"{ADDRESS}/issues",
    },
)
