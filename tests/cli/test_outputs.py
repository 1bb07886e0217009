"""Every command with every kind of standard output: no traceback, the right exit code, and what was asked for."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.processes import ROOT, run_python
from ulsam_fused import cli
from ulsam_fused.console import output

TINY = ["bench", "--device", "cpu", "--backend", "torch", "--case", "1x4x3x3/g2", "--seconds", "1e-6"]
FORWARD = [*TINY, "--direction", "forward", "--provider", "eager"]
COMMANDS = [
    [], ["--version"], ["--help"], *([name, "--help"] for name in cli.COMMANDS), ["info"], ["info", "--json"],
    ["count", "--modules"], [*FORWARD, "--verbose"],
]  # fmt: skip
NAME = os.fsdecode(b"br\xe9ken")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    return


def _printed(words: list[str], monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> tuple[int, str]:
    """Exit code and standard output of a command whose output has this encoding and is no terminal."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        code = cli.main(words)
    return code, stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@pytest.mark.slow  # counts every model of the paper
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_encoding_that_lacks_characters(
    encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (*COMMANDS, ["count"], ["count", "--markdown"]):
        code, text = _printed(words, monkeypatch, encoding)
        assert code == 0, words
        assert text, words
        assert "\\u" not in text, words
    for words in (["attend", f"{NAME}.jpg"], ["count", "--model", "mobilenet_v2", "--insert", "ü=ß"], [f"{NAME}ø"]):
        assert _printed(words, monkeypatch, encoding) == (2, "")
    assert "br\\udce9ken.jpg: no such file" in capsys.readouterr().err


@pytest.mark.slow  # counts every model of the paper
def test_plain_characters_keep_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["count"], ["count", "--modules"]):
        whole, plain = (_printed(words, monkeypatch, encoding)[1] for encoding in ("utf-8", "ascii"))
        assert whole != plain
        assert [len(line) for line in plain.splitlines()] == [len(line) for line in whole.splitlines()]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_the_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words in COMMANDS:
        for buffering in (1, -1):
            with open("/dev/full", "w", buffering) as full, monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", full)
                assert cli.main(words) == 2, words
            *_, line = capsys.readouterr().err.splitlines()
            assert line == "ulsam-fused: error: the output: No space left on device"


def test_a_closed_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Closed before Python starts, it is None, and the command does its work; closed by its reader, 141 says so."""
    for words in COMMANDS:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", None)
            assert cli.main(words) == 0, words
            assert cli.main(["count", "--json", "-"]) == 2  # that was all it should do
        reader, writer = os.pipe()
        os.close(reader)
        capsys.readouterr()
        with open(writer, "w") as closed, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", closed)
            assert cli.main(words) == 141, words
        assert "error" not in capsys.readouterr().err, words


def test_a_standard_error_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    for stream in (Full(), None):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            assert [cli.main(words) for words in (FORWARD, ["frob"])] == [0, 2]


def test_json_to_standard_output_is_alone_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one_model = ["count", "--model", "mobilenet_v2", "--width", "0.1"]
    for words, key in ((FORWARD, "rows"), (one_model, "weights"), (["count", "--modules"], "modules")):
        for name in ("-", "/dev/stdout"):
            code, text = _printed([*words, "--json", name], monkeypatch, "ascii")
            assert code == 0
            assert json.loads(text)[key]
    assert list(tmp_path.iterdir()) == []
    assert cli.main([*FORWARD, "--json", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()


def test_bench_replaces_its_file_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, part = tmp_path / "b.json", tmp_path / "b.json.part"
    path.write_text("old")
    measured = cli.bench.rows_of  # type: ignore[attr-defined]
    two = [*FORWARD, "--case", "1x4x2x2/g2", "--json", str(path)]

    def stopped(workload: object, *rest: object) -> object:
        if "2x2" in str(workload):
            raise KeyboardInterrupt
        return measured(workload, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(cli.bench, "rows_of", stopped)  # type: ignore[attr-defined]
        assert cli.main(two) == 130
    assert path.read_text() == "old"
    assert {row["case"] for row in json.loads(part.read_text())["rows"]} == {"1x4x3x3/g2"}
    assert cli.main(two) == 0
    assert len({row["case"] for row in json.loads(path.read_text())["rows"]}) == 2
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "c.json"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        assert cli.main(["count", "--modules", "--json", str(path)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.splitlines() == [f"ulsam-fused: error: {path}: cannot be written: File too large"]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_help_and_version_do_not_import_pytorch(tmp_path: Path) -> None:
    """A torch that cannot be imported stands in front of the real one."""
    (tmp_path / "torch.py").write_text("raise SystemExit('PyTorch was imported')")
    env = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    for words in (["--version"], *([name, "--help"] for name in cli.COMMANDS)):
        assert run_python(["-m", "ulsam_fused", *words], tmp_path, env)
    assert "--resume" in run_python(["-m", "ulsam_fused.train", "--help"], tmp_path, env)
    script = "import sys; sys.argv[0] = '/usr/bin/ulsam-fused'; from ulsam_fused.cli import main; sys.exit(main())"
    assert "examples:" in run_python(["-c", script, "--help"], tmp_path, env)
    with pytest.raises(AssertionError, match="PyTorch was imported"):
        run_python(["-c", "import ulsam_fused"], tmp_path, env)


def test_info_starts_no_other_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch is imported once."""
    started: list[str] = []
    popen = subprocess.Popen.__init__

    def watch(self: object, command: list[str], *rest: object, **more: object) -> None:
        started.append(str(command[0] if isinstance(command, list) else command))
        popen(self, command, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess.Popen, "__init__", watch)
    assert cli.main(["info"]) == 0
    assert not [name for name in started if "python" in name]


def test_completion_needs_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["--print-completion", "bash"]) == 2
    assert "pip install 'ulsam_fused[completion]'" in capsys.readouterr().err


def test_completion_knows_every_command_option_and_file(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    for shell in ("bash", "zsh"):
        assert cli.main(["--print-completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(word in script for word in (*cli.COMMANDS, "--num-splits", "channels_last")), shell
    assert cli.main(["--print-completion", "bash"]) == 0
    assert "_shtab_ulsam_fused_count___json_COMPGEN=_shtab_compgen_files" in capsys.readouterr().out


def test_what_stands_in_place_of_a_character() -> None:
    assert "a−b²…é\udce9".encode("ascii", output._plainly.__name__) == b"a-b2...\\xe9\\udce9"
