"""README's figures are those of the measured files."""

import subprocess
import sys

from processes import ROOT

SCRIPT = ROOT / "benchmarks" / "tables.py"


def test_readme_shows_what_was_measured() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_figure_is_noticed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name in ("benchmarks/results", "benchmarks/tables.py", "README.md"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-R", str(ROOT / name), str(target)], check=True)
    readme = tmp_path / "README.md"
    text = readme.read_text()
    assert "×)" in text
    readme.write_text(text.replace("×)", "9×)", 1))
    done = subprocess.run([sys.executable, str(tmp_path / "benchmarks" / "tables.py"), "--check"], capture_output=True)
    assert done.returncode == 1
