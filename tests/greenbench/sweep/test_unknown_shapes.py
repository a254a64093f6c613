"""What a dry run and a sweep say of a model that too little is known of."""

import pytest

from greenbench.contract.config import BackendChoice, ModelConfig, ServerConfig, ServerRequest
from greenbench.contract.cpu import ServedDtype
from greenbench.contract.launch import LaunchPlan
from greenbench.sweep.order import ServerStart
from greenbench.sweep.plan import Plan, unknown_shapes


def planned(base_url: str | None = None, **launch: object) -> Plan:
    request = ServerRequest(
        model=ModelConfig(name="m", path="/m"),
        backend=BackendChoice(name="b"),
        server=ServerConfig(base_url=base_url),
    )
    known = {
        "label": "b", "argv": [], "env": {}, "model_path": "/m", "dtype": ServedDtype("bfloat16"),
        "refusals": [], **launch,
    }  # fmt: skip
    return Plan(ServerStart(request, "b", 0, 0, ()), LaunchPlan.model_validate(known))


@pytest.mark.parametrize(
    ("plans", "said"),
    [
        ([planned(max_model_len=4096)], []),
        (
            [planned(unknown="its class is code of its own")] * 2,  # once a model, not a backend
            [
                "m: its window, head size and cache are not known, because its class is code of its own"
            ],
        ),
        (
            [planned()],
            [
                "m: its config gives no window, and vLLM then serves 2048 tokens: "
                "set server.max_model_len"
            ],
        ),
        ([planned(unknown="no vLLM", refusals=["vLLM is not installed"])], []),
        ([planned(base_url="http://h:1", unknown="not here")], []),
    ],
    ids=["known", "unknown", "no bound", "refused anyway", "a running server"],
)
def test_the_sentence(plans: list[Plan], said: list[str]) -> None:
    assert unknown_shapes(plans) == said
