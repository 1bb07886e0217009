"""Triton's interpreter without three of its faults, and without work that it repeats for nothing: a third of the time.

- Before a function of a kernel runs, the interpreter replaces the operations of `triton.language` by its own. It does
  so at each call of each function, for about 300 names, though nothing has put them back since the launch began.
- At each operation it builds the table that translates Triton's types into NumPy's.
- It computes whether an integer sum or product overflows, and forgets the answer unless it debugs.
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
        from triton.runtime import interpreter

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

    interpreter._patch_lang = patch_once
    interpreter.GridExecutor.__call__ = launch
    interpreter._get_np_dtype = translate_once
    if not options.debug:
        interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
