"""The table of mutants fits the sources: a mistake that cannot be planted proves nothing."""

from tests.helpers.processes import ROOT
from tests.mutants.table import read


def test_every_mutant_can_be_planted_and_its_tests_exist() -> None:
    mutants = read()
    assert len({(mutant.file, mutant.name) for mutant in mutants}) == len(mutants) > 50
    for mutant in mutants:
        source = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert mutant.plant(source) != source
        if mutant.file.endswith(".py"):
            compile(mutant.plant(source), mutant.file, "exec")
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            assert (ROOT / test.partition("::")[0]).is_file(), test
