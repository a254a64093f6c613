"""What each supported vLLM release has of what we use, as scripts/vllm_interfaces.py recorded it."""

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
RELEASES: dict[str, dict[str, Any]] = {
    path.stem.removeprefix("interfaces-"): json.loads(path.read_text())
    for path in sorted(DATA.glob("interfaces-*.json"))
}
