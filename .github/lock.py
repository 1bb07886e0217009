"""Writes requirements-3.12.txt, the locked test environment of CI: `make lock`, after constraints.txt was changed.

uv resolves. Of its answer the hashes of the wheels stay that Python 3.12 takes on 64-bit x86 Linux, and no addresses.
"""

import subprocess
import tempfile
from pathlib import Path

import tomllib
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

HERE = Path(__file__).parent
PLATFORMS = ["manylinux_2_28_x86_64", *(f"manylinux_2_{n}_x86_64" for n in range(27, 4, -1)), "manylinux2014_x86_64"]
TAGS = {*cpython_tags((3, 12), platforms=PLATFORMS), *compatible_tags((3, 12), "cp312", PLATFORMS)}

with tempfile.TemporaryDirectory() as folder:
    resolved = Path(folder) / "pylock.toml"
    command = "uv pip compile -q --format pylock.toml --python-version 3.12 --python-platform x86_64-manylinux_2_28"
    command += f" --extra test -c constraints.txt pyproject.toml -o {resolved}"
    subprocess.run(command.split(), cwd=HERE.parent, check=True)
    packages = tomllib.loads(resolved.read_text())["packages"]
lines = ["# Made by `make lock`: what constraints.txt comes to with Python 3.12 on 64-bit x86 Linux. CI installs it."]
for package in packages:
    wheels = {wheel["url"].rpartition("/")[2]: wheel["hashes"]["sha256"] for wheel in package["wheels"]}
    fitting = [digest for name, digest in wheels.items() if parse_wheel_filename(name)[3] & TAGS]
    assert fitting, f"{package['name']} has no wheel for this platform"
    lines.append(f"{package['name']}=={package['version']}" + "".join(f" --hash=sha256:{d}" for d in sorted(fitting)))
(HERE / "requirements-3.12.txt").write_text("\n".join(lines) + "\n")
