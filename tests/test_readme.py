"""Every Python block of the README runs, in one namespace, from top to bottom."""

import re
from pathlib import Path

import jax
import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_blocks(capsys):
    pytest.importorskip("flax")
    assert len(BLOCKS) >= 3
    namespace = {}
    for block in BLOCKS:
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam does not run under strict promotion
            exec(compile(block, str(README), "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    assert "(4, 182, 246, 3)" in printed
    assert "nan" not in "".join(printed)
