"""How kernels are compiled, and what is kept of that on disk."""

import hashlib
import importlib.resources
import os
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.compiler_lock import global_compiler_lock

__all__ = ["compiled", "leave_cache", "vectorised"]

if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise ImportError("numba's compiler is switched off")

# A child that is forked while another thread compiles would find the compiler locked for ever; and so the module that
# numba imports at its first array, before it takes that lock.
numba.typeof(np.empty(0))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


def _digest_of_sources() -> str:
    sources = [path for path in importlib.resources.files(__package__).iterdir() if path.name.endswith(".py")]
    parts = [path.read_bytes() for path in sorted(sources, key=lambda path: path.name)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


_SOURCES = _digest_of_sources()


class _Cache(FunctionCache):
    """A kernel on disk, out of date as soon as a file of this folder has changed: numba itself looks at the kernel's
    own file alone, and not at those of the functions that it calls."""

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp(), _SOURCES
        self._cache_file = IndexDataCacheFile(self.cache_path, self._impl.filename_base, stamp)


_kernels: list[Any] = []


def _compile(**options: Any) -> Callable[[Callable], Callable]:
    def decorate(function: Callable) -> Callable:
        kernel: Any = numba.njit(nogil=True, error_model="numpy", forceinline=True, **options)(function)
        try:
            kernel._cache = _Cache(function)
        except RuntimeError:  # there is no folder to keep it in
            return kernel
        _kernels.append(kernel)
        return kernel

    return decorate


compiled = _compile()
# What vector instructions need: sums in another order, and products and sums that are rounded once.
vectorised = _compile(fastmath={"reassoc", "contract"})


def leave_cache() -> str:
    """Compile from now on without what is kept on disk, whose folder is returned."""
    folders = [getattr(kernel._cache, "cache_path", "") for kernel in _kernels]
    for kernel in _kernels:
        kernel._cache = NullCache()
    return folders[0] if folders else ""
