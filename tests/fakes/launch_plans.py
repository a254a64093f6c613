"""A launch plan with the least that one must hold."""

from greenbench.contract.launch import LaunchPlan


def launch_plan(**changes: object) -> LaunchPlan:
    fields: dict[str, object] = {
        "label": "a", "argv": [], "env": {}, "model_path": "/m", "dtype": {"name": "float32"},
        "refusals": [],
    }  # fmt: skip
    return LaunchPlan.model_validate({**fields, **changes})
