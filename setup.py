"""Builds the wheel: what lies beside adco/ in the repository lies inside adco there.

So an installed AdCo takes one name in site-packages. `ops` is another project's name, and a common
one in people's own code. An editable install (pip install -e .) has the repository itself on its
path, and moves nothing. Everything else is in pyproject.toml.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BESIDE = ("ops", "VOC_CLF", "main_adco", "lincls")  # adco.ops and so on in the wheel
IMPORT = re.compile(rf"^(\s*(?:from|import) )(?=(?:{'|'.join(BESIDE)})\b)", re.MULTILINE)


class BuildInside(build_py):
    def run(self):
        if self.editable_mode:
            return super().run()
        shutil.rmtree(self.build_lib, ignore_errors=True)  # files of an earlier build
        super().run()
        package = Path(self.build_lib, "adco")
        for name in BESIDE:
            for source in [*Path(name).glob("*.py"), *Path().glob(f"{name}.py")]:
                (package / source).parent.mkdir(exist_ok=True)
                shutil.copy(source, package / source)
        for path in package.rglob("*.py"):
            path.write_text(IMPORT.sub(r"\1adco.", path.read_text("utf-8")), "utf-8")


setup(cmdclass={"build_py": BuildInside})
