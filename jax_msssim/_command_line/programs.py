"""Programs kept in the user's cache directory: the next command neither traces nor compiles them."""

import contextlib
import hashlib
import os
import pickle
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import platformdirs
from jax.experimental import serialize_executable

from jax_msssim import __version__


class Programs:
    """The programs of a function, one for each shape and type of its arguments; with a folder, kept in it.

    The folder holds them as they were compiled, for one kind of processor.
    """

    def __init__(self, function: Callable[..., jax.Array], name: str, folder: Path | None):
        self._function, self._name, self._folder = function, name, folder
        self._compiled: dict[Any, Callable[..., jax.Array]] = {}

    def __call__(self, *arrays: Any, **static: Any) -> jax.Array:
        outline = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
        key = repr((self._name, outline, static))
        if key not in self._compiled:

            def compiled() -> jax.stages.Compiled:
                return jax.jit(self._function, static_argnames=tuple(static)).lower(*outline, **static).compile()

            with quiet():
                self._compiled[key] = compiled() if self._folder is None else _kept(compiled, self._folder, key)
        return self._compiled[key](*arrays)


def cache_folder() -> Path | None:
    """Where programs are kept, if they can be; XLA's cache, for all others, is on there, unless the user has one."""
    folder = platformdirs.user_cache_path("jax_msssim")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    # Programs for other platforms were not tried.
    if not os.access(folder, os.W_OK) or jax.default_backend() != "cpu":
        return None
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing reaches stderr: what XLA tells of each program that it has from its cache."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _kept(compiled: Callable[[], jax.stages.Compiled], folder: Path, key: str) -> jax.stages.Compiled:
    """The program of this key in the folder, or what ``compiled`` returns, which is then kept there."""
    instructions = platform.machine(), np.show_config(mode="dicts").get("SIMD Extensions")
    versions = __version__, jax.__version__, jax.dtypes.canonicalize_dtype("float64").name, instructions
    file = folder / f"{hashlib.sha256(repr((versions, key)).encode()).hexdigest()}.program"
    with contextlib.suppress(Exception):  # not there, or damaged
        parts = pickle.loads(file.read_bytes())
        return serialize_executable.deserialize_and_load(*parts, execution_devices=jax.devices()[:1])
    made = compiled()
    part = file.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):  # a full disk, say
        part.write_bytes(pickle.dumps(serialize_executable.serialize(made)))
        part.replace(file)
    return made
