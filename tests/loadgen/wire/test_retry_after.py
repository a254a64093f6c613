"""Retry-After in all its forms, through the message of a row to the pause of a user."""

import pytest

from greenbench.contract.schema import RequestRecord
from loadgen.driver.retry import FAILURE_PAUSE_S, RETRY_AFTER_MAX_S, pause_after
from loadgen.wire.retry_after import retry_hint

DATE = b"Mon, 23 Nov 2026 07:48:12 GMT"  # 1,795,420,092 s
LATER = b"Mon, 23 Nov 2026 07:48:14 GMT"


def pause(headers: dict[bytes, bytes], now_s: float = 1_795_420_092.0) -> float:
    """Of a user whose request was refused with these headers."""
    hint = retry_hint(headers, now_s)
    message = "; ".join(part for part in ("HTTP 429", hint, "slow down") if part)
    row = RequestRecord.from_dict(
        {"error_type": "http_4xx", "error_message": message}
        | {name: "x" for name in ("run_id", "client_id", "request_id", "task", "prompt_sha256")}
        | {"phase": "measure", "time_source": "user"}
        | {name: 0 for name in ("prompt_index", "context_tokens_target", "max_output_tokens")}
        | {"in_flight_at_send": 0}
    )
    return pause_after(row)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({b"retry-after": b"2"}, 2.0),
        ({b"retry-after": b"2.0"}, 2.0),
        ({b"retry-after": b"0.25"}, 0.25),
        ({b"retry-after": b".5"}, 0.5),
        ({b"retry-after": b" 3 "}, 3.0),
        ({b"retry-after": b"2s"}, 2.0),
        ({b"retry-after": b"2, 4"}, 2.0),
        ({b"retry-after": LATER, b"date": DATE}, 2.0),
        ({b"retry-after": LATER}, 2.0),  # from this host's clock, where the reply has no date
        ({b"retry-after": DATE, b"date": LATER}, FAILURE_PAUSE_S),  # it has passed
        ({b"retry-after": b"Monday, 23-Nov-26 07:48:14 GMT", b"date": DATE}, 2.0),  # RFC 850
        ({b"retry-after-ms": b"1500"}, 1.5),
        ({b"retry-after-ms": b"soon", b"retry-after": b"2"}, 2.0),
        ({b"retry-after": b"0"}, FAILURE_PAUSE_S),
        ({b"retry-after": b"-1"}, FAILURE_PAUSE_S),
        ({b"retry-after": b"soon"}, FAILURE_PAUSE_S),
        ({b"retry-after": b"inf"}, FAILURE_PAUSE_S),
        ({b"retry-after": b"\xff"}, FAILURE_PAUSE_S),
        ({b"retry-after": b"Mon, 99 Nov 99999 99:99:99 GMT"}, FAILURE_PAUSE_S),
        ({b"retry-after": b"3600"}, RETRY_AFTER_MAX_S),
        ({}, FAILURE_PAUSE_S),
    ],
)
def test_a_server_is_left_alone_for_as_long_as_it_says(
    headers: dict[bytes, bytes], seconds: float
) -> None:
    assert pause(headers) == pytest.approx(seconds)
