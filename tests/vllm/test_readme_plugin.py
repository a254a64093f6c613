"""The README's own backend is a backend: its file loads, and it is the class that vLLM would build."""

import re
from pathlib import Path

from servers.plugins.step import StepBackend, StepImpl

README = Path(__file__).resolve().parent.parent.parent / "README.md"


def test_the_readmes_file_makes_a_backend() -> None:
    file = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)[0]
    found: dict[str, type] = {"__name__": "my_attn"}  # type: ignore[dict-item]
    exec(file, found)
    assert issubclass(found["MyBackend"], StepBackend)
    assert issubclass(found["MyBackend"].get_impl_cls(), StepImpl)
    assert found["MyBackend"].get_impl_cls().__name__ == "MyImpl"
    assert callable(found["MyBackend"].get_builder_cls().planner)
