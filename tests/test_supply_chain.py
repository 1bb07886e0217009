"""What a user takes in with this package: no network, and no file that can run code when it is loaded."""

import ast
import pathlib
import re

import pytest

from tests.helpers.processes import ROOT, run_python

# every attempt to reach another machine is an audit event, which C code raises too
_OFFLINE = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        raise AssertionError(f"{event} {arguments}")

sys.addaudithook(refuse)
try:
    import socket
    socket.create_connection(("192.0.2.1", 9), timeout=0.01)
except AssertionError:
    pass
else:
    raise AssertionError("the hook does not see a connection")

import importlib, pkgutil
import torch
import ulsam_fused as uf
import ulsam_fused.cli, ulsam_fused.kernels, ulsam_fused.train

names = [module.name for module in pkgutil.walk_packages(uf.__path__, "ulsam_fused.")]
assert "ulsam_fused.train.loop" in names and "ulsam_fused.cli.attend" in names, names
for name in names:
    if name.rpartition(".")[2] != "__main__":
        try:
            importlib.import_module(name)
        except ImportError as error:
            assert error.name and not error.name.startswith("ulsam_fused"), error  # an extra that is not installed
for layer in (uf.ULSAM(4, 2), uf.upstream.ULSAM(4, num_splits=2)):
    layer(torch.randn(2, 4, 3, 5, requires_grad=True)).sum().backward()
uf.models.mobilenet_v2(width=0.35, insert={17: 4}, num_classes=10).eval()(torch.randn(1, 3, 32, 32))
uf.fuse(torch.nn.Sequential(uf.reference.ULSAM(4, 2)))
for command in (["info"], ["count", "--model", "mobilenet_v2"]):
    assert uf.cli.main(command) == 0, command
print("offline")
"""


@pytest.mark.slow  # imports PyTorch and Triton
def test_nothing_reaches_for_the_network(tmp_path: pathlib.Path) -> None:
    output = run_python(["-c", _OFFLINE], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert output.splitlines()[-1] == "offline"


RUNS_CODE = ("pickle.load", "pickle.loads", "marshal.loads", "torch.hub.load", "eval", "exec", "os.system")


def _calls(path: pathlib.Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_files_are_loaded_as_weights_only() -> None:
    """torch.load runs whatever a file says, unless it is told not to; pickle.load and eval always do."""
    folders = ("ulsam_fused", "kernels", "benchmarks", "examples", "tools")
    seen = 0
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for call in _calls(path):
            name = ast.unparse(call.func)
            if name == "torch.load":
                seen += 1
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert options.get("weights_only") == "True", f"{path}:{call.lineno}"
            assert name not in RUNS_CODE, f"{path}:{call.lineno}: {name}"
    assert seen >= 2


def test_the_locked_environment_has_the_versions_of_constraints_and_a_hash_for_each() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    lines = (ROOT / ".github" / "requirements-3.12.txt").read_text().splitlines()[1:]
    locked = dict(line.split(" ")[0].split("==") for line in lines)
    assert all(re.fullmatch(r"[a-z0-9-]+==[^ ]+( --hash=sha256:[0-9a-f]{64})+", line) for line in lines)
    pinned = [line.partition(";")[0].split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]]
    for name, version in pinned:
        assert locked.get(name, version.strip()) == version.strip(), name
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
    assert {re.split(r"[^\w-]", wanted, maxsplit=1)[0] for wanted in extra} <= set(locked)


def test_no_command_goes_through_a_shell() -> None:
    for path in (ROOT / "ulsam_fused").rglob("*.py"):
        assert not [call for call in _calls(path) if any(keyword.arg == "shell" for keyword in call.keywords)], path
