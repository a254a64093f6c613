"""What an OpenAI-compatible server serves, and where it completes: asked once, before any load.

Used by the sweep's plan, the probe and the load generators alike. Every question has a limit.
"""

from typing import Any, Final, Literal, cast

from greenbench.contract.access import Access
from greenbench.contract.errors import UserError
from greenbench.contract.fetch import FetchError, Limits, Reply, fetch

MODELS_LIMITS: Final = Limits(10.0, 8 * 2**20)
TRIAL_LIMITS: Final = Limits(120.0, 8 * 2**20)  # a first request may compile kernels
Served = Literal["completions", "chat"]
PATHS: Final[dict[Served, str]] = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
}
TRIALS: Final[dict[Served, dict[str, Any]]] = {  # bodies of one token
    "completions": {"prompt": [10, 11, 12]},  # as token ids: text has no exact length
    "chat": {"messages": [{"role": "user", "content": "1"}]},
}
NO_KEY: Final = (401, 403)
NOT_NOW: Final = (408, 425, 429)  # says nothing of whether the endpoint is there


class NoModels(FetchError):
    """It answers, and does not list its models: what it says instead."""


def served_models(access: Access) -> list[dict[str, Any]]:
    """The entries of /v1/models with an ``id``.

    Raises FetchError where nothing answers, NoModels where what answers lists none, UserError where a key
    is wanted.
    """
    reply = fetch(access, "/v1/models", MODELS_LIMITS)
    _refuse_strangers(access, reply)
    if not reply.is_success:
        raise NoModels(f"/v1/models: {_said(reply)}")
    said = reply.json()
    listed = cast("dict[str, object]", said).get("data") if isinstance(said, dict) else said
    if not isinstance(listed, list):
        raise NoModels(f"/v1/models gives no list of models: {reply.words or 'nothing'}")
    each_one = cast("list[object]", listed)
    entries = [cast("dict[str, Any]", each) for each in each_one if isinstance(each, dict)]
    return [each for each in entries if isinstance(each.get("id"), str)]


def find_endpoint(access: Access, model: str, wanted: str) -> Served:
    """Where the server completes: by one token, asked for at ``wanted``, or for ``auto`` at each in turn.

    UserError with the server's own words where it does at none; FetchError where it does not answer.
    """
    places: list[Served] = ["chat" if wanted == "chat" else "completions"]
    if wanted == "auto":
        places.append("chat")
    refusals: list[str] = []
    for place in places:
        body = {"model": model, "max_tokens": 1, "temperature": 0, **TRIALS[place]}
        reply = fetch(access, PATHS[place], TRIAL_LIMITS, body)
        _refuse_strangers(access, reply)
        if reply.is_success or reply.status in NOT_NOW or reply.status >= 500:
            return place
        refusals.append(f"{PATHS[place]} answers {_said(reply)}")
    other = "" if wanted == "auto" else "; 'endpoint: auto' takes the one that answers"
    raise UserError(f"{access.base_url} completes nothing: {'; '.join(refusals)}{other}")


def _refuse_strangers(access: Access, reply: Reply) -> None:
    if reply.status not in NO_KEY:
        return
    if any(name.lower() == "authorization" for name, _ in access.headers):
        raise UserError(
            f"{access.base_url} refuses the key that it was given ({_said(reply)}); check the value of the "
            "environment variable that api_key_env names"
        )
    raise UserError(
        f"{access.base_url} wants a key ({_said(reply)}); put it into an environment variable and name "
        "that: 'api_key_env: OPENAI_API_KEY' in the sweep's 'server', or --api-key-env"
    )


def _said(reply: Reply) -> str:
    if 300 <= reply.status < 400:
        return f"HTTP {reply.status}: go to {reply.headers.get('location', '(nowhere)')[:100]}"
    return f"HTTP {reply.status}: {reply.words}".rstrip(": ")
