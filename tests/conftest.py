"""What several files of tests share."""

import pytest

from greenbench.vllm_python import vllm_python
from tests.fakes.serving import Pace, measure_pace


@pytest.fixture(scope="session")
def pace(tmp_path_factory: pytest.TempPathFactory) -> Pace:
    """How fast this machine serves, measured once."""
    if not vllm_python().exists():
        pytest.skip("no vLLM python; run `make setup`")
    found = measure_pace(tmp_path_factory.mktemp("pace"))
    print(f"this machine: {found}")
    return found
