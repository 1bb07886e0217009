"""Triton's interpreter without three of its faults, and without work that it repeats for nothing.

- Before a function of a kernel runs, the interpreter replaces the operations of `triton.language` by its own. It does
  so at each call of each function, for about 300 names, though nothing has put them back since the launch began.
- At each operation it builds the table that translates Triton's types into NumPy's.
- It computes whether an integer sum or product overflows, and forgets the answer unless it debugs.
- Each result has a type of its own, whose shape is checked, copied twice and printed; and of two operands it makes a
  third shape, to see that they had it already.
"""

import dataclasses
import functools
from typing import Any


def mend() -> None:
    """Three faults of the interpreter, from here on.

    - Of scalars that were compared it makes a block of int32, and Triton 3.9 refuses that as a mask.
    - Scalars are arrays of one number, which NumPy 2.4 does not take for an index any more. Triton 3.7 knows that.
    - bfloat16 are unsigned numbers of 16 bits, whose maxima Triton 3.9 takes.
    """
    try:
        from triton import language as tl
        from triton.runtime import interpreter
        from triton.runtime.interpreter import InterpreterBuilder
    except ImportError:
        return

    splat, patch_tensor = InterpreterBuilder.create_splat, interpreter._patch_lang_tensor

    def splat_as_it_is(self: Any, block_type: Any, scalar: Any) -> Any:
        block = splat(self, block_type, scalar)
        if scalar.data.dtype == bool:
            block.data = block.data.astype(bool)
        return block

    def patch_tensor_with_an_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    def in_float32(operation: Any) -> Any:
        def compare(self: Any, one: Any, other: Any) -> Any:
            if one.dtype.scalar != tl.bfloat16:
                return operation(self, one, other)
            wide = operation(self, self.cast_impl(one, tl.float32), self.cast_impl(other, tl.float32))
            return self.cast_impl(wide, tl.bfloat16)

        return compare

    for name in ("create_maximumf", "create_minimumf", "create_maxnumf", "create_minnumf"):
        setattr(InterpreterBuilder, name, in_float32(getattr(InterpreterBuilder, name)))
    InterpreterBuilder.create_splat = splat_as_it_is
    interpreter._patch_lang_tensor = patch_tensor_with_an_index


def hasten() -> None:
    """From here on. Does nothing without Triton, or with a release whose interpreter is built in another way."""
    try:
        from triton import language as tl
        from triton.language.semantic import TritonSemantic
        from triton.runtime import interpreter

        block_init, tensor_init = tl.block_type.__init__, tl.tensor.__init__
        with_element, broadcast = tl.block_type.with_element_ty, TritonSemantic.broadcast_impl_value
        patch, scope, run = interpreter._patch_lang, interpreter._LangPatchScope, interpreter.GridExecutor.__call__
        translate = interpreter._get_np_dtype
        options = interpreter.interpreter_builder.options
    except (ImportError, AttributeError):
        return

    patched: set[str] = set()  # the modules that carry the interpreter's operations in this launch

    @functools.cache
    def visible(fn: Any) -> frozenset[str]:
        """Of the modules that the interpreter patches, those that this function sees."""
        return frozenset(lang.__name__ for lang in (tl, tl.core) if any(v is lang for v in fn.__globals__.values()))

    def patch_once(fn: Any) -> Any:
        if visible(fn) and visible(fn) <= patched:
            return scope()
        patched.update(visible(fn))
        return patch(fn)

    numpy_types: dict[str, Any] = {}

    def translate_once(dtype: Any) -> Any:
        scalar = dtype.scalar  # of a block of pointers a pointer, which has no name
        if isinstance(scalar, tl.pointer_type):
            return translate(dtype)
        if scalar.name not in numpy_types:
            numpy_types[scalar.name] = translate(scalar)
        return numpy_types[scalar.name]

    def launch(self: Any, *arguments: Any, **options: Any) -> None:
        patched.clear()
        run(self, *arguments, **options)

    shapes: dict[tuple[int, ...], Any] = {}  # one object for each, so that `is` compares them
    blocks: dict[tuple[Any, tuple[int, ...]], dict[str, Any]] = {}  # attributes of a type, by element and shape
    sizes: dict[int | None, dict[str, Any]] = {}  # attributes of a tensor that follow from the object that is its shape
    of_element: dict[tuple[str, int], Any] = {}  # types, by element and shape
    common: dict[tuple[int, int], Any] = {}  # the type of what two shapes broadcast to

    def block_once(self: Any, element: Any, shape: Any) -> None:
        key = tuple([getattr(size, "value", size) for size in shape])
        known = not isinstance(element, tl.pointer_type) and (element.name, key)  # a pointer's name does not say all
        if known and known in blocks:
            self.__dict__.update(blocks[known])
            return
        block_init(self, element, shape)
        self.shape = shapes.setdefault(key, self.shape)
        if known:
            blocks[known] = dict(self.__dict__)

    def tensor_once(self: Any, handle: Any, type: Any) -> None:
        key = id(type.shape) if type.is_block() else None
        if key not in sizes:
            tensor_init(self, handle, type)
            sizes[key] = {name: value for name, value in self.__dict__.items() if name in ("shape", "numel")}
        self.__dict__.update(sizes[key], handle=handle, type=type, dtype=type.scalar)

    def with_element_once(self: Any, element: Any) -> Any:
        if isinstance(element, tl.pointer_type):
            return with_element(self, element)
        key = element.name, id(self.shape)
        if key not in of_element:
            of_element[key] = with_element(self, element)
        return of_element[key]

    def broadcast_once(self: Any, one: Any, other: Any) -> Any:
        if not (one.type.is_block() and other.type.is_block()):
            return broadcast(self, one, other)
        key = id(one.type.shape), id(other.type.shape)
        if len(one.type.shape) != len(other.type.shape) or key not in common:
            found = broadcast(self, one, other)
            common[key] = found[0].type
            return found
        both, shape = common[key], list(common[key].shape)
        return tuple(
            t
            if t.type.shape is both.shape
            else self.tensor(self.builder.create_broadcast(t.handle, shape), both.with_element_ty(t.type.scalar))
            for t in (one, other)
        )

    tl.block_type.__init__, tl.tensor.__init__ = block_once, tensor_once
    tl.block_type.with_element_ty, TritonSemantic.broadcast_impl_value = with_element_once, broadcast_once
    interpreter._patch_lang = patch_once
    interpreter.GridExecutor.__call__ = launch
    interpreter._get_np_dtype = translate_once
    if not options.debug:
        interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
