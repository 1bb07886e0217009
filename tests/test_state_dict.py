"""State dicts with the authors' keys, and flat ones, loaded by both kinds of layers."""

import copy
import io
import itertools
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ulsam_fused as uf
from tests.helpers.authors import joined, pair
from ulsam_fused.state_dict import KEYS

FLAT = uf.ULSAM(4, 2, bias=True, norm="batch", activation="relu").state_dict().keys()


def models(channels: int = 6, num_splits: int = 3) -> tuple[nn.Sequential, nn.Sequential]:
    """A convolution and the authors' module, and the same with ours, of other weights; statistics are not initial."""
    theirs, _ = pair(channels, num_splits)
    theirs = nn.Sequential(nn.Conv2d(3, channels, 1, dtype=torch.float64), theirs)
    for _ in range(3):
        theirs(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    ours = uf.upstream.ULSAM(channels, num_splits=num_splits, dtype=torch.float64)
    return theirs, nn.Sequential(nn.Conv2d(3, channels, 1, dtype=torch.float64), ours)


def flat() -> nn.Sequential:
    """The same with our own layer."""
    ours = uf.ULSAM(6, 3, bias=True, norm="batch", activation="relu", dtype=torch.float64)
    return nn.Sequential(nn.Conv2d(3, 6, 1, dtype=torch.float64), ours)


def assert_equal(theirs: nn.Sequential, ours: nn.Sequential) -> None:
    for name, t in [*ours[1].named_parameters(), *ours[1].named_buffers()]:
        assert torch.equal(t, joined(theirs[1], name)), name


@pytest.mark.parametrize("num_splits", [1, 3, 6])
@pytest.mark.parametrize("assign", [False, True])
def test_their_state_dict_loads(num_splits: int, assign: bool) -> None:
    theirs, ours = models(6, num_splits)
    given = theirs.state_dict()
    before = OrderedDict(given)
    assert str(ours.load_state_dict(given, assign=assign)) == "<All keys matched successfully>"
    assert_equal(theirs, ours)
    assert list(given) == list(before)
    assert all(given[key] is before[key] for key in given)
    assert all(isinstance(p, nn.Parameter) for p in ours.parameters())


def test_ours_is_written_as_theirs() -> None:
    theirs, ours = models()
    ours.load_state_dict(theirs.state_dict())
    written, expected = ours.state_dict(), theirs.state_dict()
    assert list(written) == list(expected)
    for key, t in written.items():
        assert torch.equal(t, expected[key]), key
        assert (t.shape, t.dtype) == (expected[key].shape, expected[key].dtype)
    for key in ("1.subspaces.0.bn_dws", "1.subspaces.2.bn_point"):
        assert written._metadata[key] == expected._metadata[key]
    fresh, _ = models()
    assert str(fresh.load_state_dict(written)) == "<All keys matched successfully>"
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(fresh.eval()(x), theirs.eval()(x))


def test_file_copy_and_pickle() -> None:
    theirs, ours = models()
    ours.load_state_dict(theirs.state_dict())
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    _, again = models()
    again.load_state_dict(torch.load(file, weights_only=True))
    assert_equal(theirs, again)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert_equal(theirs, twin)
        assert list(twin.state_dict()) == list(ours.state_dict())
        twin.load_state_dict(theirs.state_dict())


def test_a_state_dict_shares_memory_with_the_layer_but_not_within() -> None:
    """As PyTorch's own; formats such as safetensors refuse tensors that overlap."""
    _, ours = models()
    written = ours.state_dict()
    with torch.no_grad():
        ours[1].subspaces[1].conv_dws.weight.fill_(7.0)
    assert (written["1.subspaces.1.conv_dws.weight"] == 7).all()
    spans = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in written.values())
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def test_kept_variables_carry_gradients() -> None:
    _, ours = models()
    assert ours.state_dict(keep_vars=True)["1.subspaces.0.conv_point.weight"].requires_grad
    assert not ours.state_dict()["1.subspaces.0.conv_point.weight"].requires_grad


@pytest.mark.parametrize("key", [f"1.subspaces.1.{key}" for key in KEYS.values()])
def test_a_missing_key_is_named_and_the_rest_loads(key: str) -> None:
    theirs, ours = models()
    given = theirs.state_dict()
    del given[key]
    with pytest.raises(RuntimeError, match=f'Missing key\\(s\\) in state_dict: "{key}"'):
        ours.load_state_dict(given)
    _, ours = models()
    own = ours.state_dict()[key].clone()
    result = ours.load_state_dict(given, strict=False)
    assert result.missing_keys == [key]
    assert result.unexpected_keys == []
    written, expected = ours.state_dict(), theirs.state_dict()
    assert torch.equal(written.pop(key), own)
    del expected[key]
    assert all(torch.equal(t, expected[name]) for name, t in written.items())


@pytest.mark.parametrize("key", KEYS.values())
def test_the_flat_layer_names_a_missing_key_and_loads_the_rest(key: str) -> None:
    theirs, _ = models()
    given = theirs.state_dict()
    del given[f"1.subspaces.1.{key}"]
    with pytest.raises(RuntimeError, match=f'Missing key\\(s\\) in state_dict: "1.subspaces.1.{key}"'):
        flat().load_state_dict(given)
    ours = flat()
    own = {name: t.clone() for name, t in ours[1].state_dict().items()}
    result = ours.load_state_dict(given, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([f"1.subspaces.1.{key}"], [])
    for name, t in ours[1].state_dict().items():
        expected = joined(theirs[1], name)
        if KEYS[name] == key and t.dim():  # the second part of three stays
            first, _, third = expected.chunk(3)
            expected = torch.cat((first, own[name].chunk(3)[1], third))
        assert torch.equal(t, expected), name


def test_old_files_without_counts_load_as_in_pytorch() -> None:
    theirs, ours = models()
    given = {key: t for key, t in theirs.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert str(ours.load_state_dict(given)) == "<All keys matched successfully>"


def test_unexpected_keys_are_named() -> None:
    theirs, ours = models()
    extra = {"1.subspaces.3.bn_dws.weight": torch.ones(2), "1.subspaces.0.se.bias": torch.ones(1)}
    given = {**theirs.state_dict(), **extra}
    with pytest.raises(RuntimeError, match="Unexpected") as info:
        ours.load_state_dict(given)
    assert '"1.subspaces.3.bn_dws.weight", "1.subspaces.0.se.bias"' in str(info.value)
    assert "Missing" not in str(info.value)


@pytest.mark.parametrize("make", [lambda: models()[1], flat], ids=["authors", "flat"])
@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (2,)], ids=["wrong", "of the right size"])
def test_a_wrong_shape_is_named(shape: tuple[int, ...], make: Callable[[], nn.Sequential]) -> None:
    given = models()[0].state_dict()
    given["1.subspaces.2.conv_dws.weight"] = torch.ones(shape)
    found = re.escape(str(list(shape)))
    with pytest.raises(
        RuntimeError, match=rf"size mismatch for 1.subspaces.2.conv_dws.weight: .*{found}\).*\[2, 1, 1, 1\]"
    ):
        make().load_state_dict(given)


def test_another_number_of_splits_is_refused() -> None:
    theirs, _ = models(6, 3)
    _, ours = models(6, 2)
    with pytest.raises(RuntimeError, match=r"subspaces\.2\.conv_dws\.weight"):
        ours.load_state_dict(theirs.state_dict())


def test_counts_that_differ_load_where_each_subspace_has_its_own() -> None:
    theirs, ours = models()
    theirs[1].subspaces[1].bn_dws.num_batches_tracked.fill_(99)
    ours.load_state_dict(theirs.state_dict())
    assert_equal(theirs, ours)
    with pytest.raises(RuntimeError, match="differs between subspaces"):
        flat().load_state_dict(theirs.state_dict())


def test_a_file_without_the_module_misses_their_keys() -> None:
    theirs, ours = models()
    given = {key: t for key, t in theirs.state_dict().items() if key.startswith("0.")}
    result = ours.load_state_dict(given, strict=False)
    assert sorted(result.missing_keys) == sorted(
        key for key in theirs.state_dict() if key.startswith("1.") and not key.endswith("num_batches_tracked")
    )


def test_our_own_layer_has_flat_names_and_loads_both() -> None:
    theirs, upstream = models()
    ours = flat()
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert_equal(theirs, ours)
    written = ours.state_dict()
    assert set(written) == {"0.weight", "0.bias", *(f"1.{name}" for name in FLAT)}
    assert set(FLAT) == set(KEYS)
    upstream.load_state_dict(written)
    assert_equal(theirs, upstream)
    missing = ours.load_state_dict({"0.weight": written["0.weight"], "0.bias": written["0.bias"]}, strict=False)
    assert set(missing.missing_keys) >= {f"1.{name}" for name in FLAT if not name.endswith("num_batches_tracked")}


def test_one_subspace() -> None:
    theirs, ours = uf.reference.SubSpace(5), uf.upstream.SubSpace(5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(ours.eval()(x) - x, theirs.eval()(x) - x)


def test_meta_device_and_other_types() -> None:
    theirs, _ = models()
    with torch.device("meta"):
        empty = nn.Sequential(nn.Conv2d(3, 6, 1), uf.upstream.ULSAM(6, num_splits=3))
    empty.load_state_dict(theirs.state_dict(), assign=True)
    assert_equal(theirs, empty)
    half = nn.Sequential(nn.Conv2d(3, 6, 1), uf.upstream.ULSAM(6, num_splits=3)).half()
    half.load_state_dict(theirs.state_dict())
    for p, q in zip(half[1].parameters(), theirs[1].parameters(), strict=True):
        assert p.dtype == torch.float16
        torch.testing.assert_close(p.double(), q, rtol=1e-3, atol=1e-3)


def test_optimizer_state_survives_a_restart() -> None:
    """Our own checkpoints resume exactly: weights under their keys, optimizer state by position."""

    def train(model: nn.Module, optimizer: Any, batches: list[Tensor]) -> None:
        for x in batches:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    batches = list(torch.randn(4, 2, 3, 4, 4, dtype=torch.float64))
    _, straight = models()
    _, first = models()
    first.load_state_dict(straight.state_dict())
    optimizers = [torch.optim.Adam(m.parameters()) for m in (straight, first)]
    train(straight, optimizers[0], batches)
    train(first, optimizers[1], batches[:2])
    _, second = models()
    second.load_state_dict(first.state_dict())
    resumed = torch.optim.Adam(second.parameters())
    resumed.load_state_dict(optimizers[1].state_dict())
    train(second, resumed, batches[2:])
    for key, t in second.state_dict().items():
        assert torch.equal(t, straight.state_dict()[key]), key
