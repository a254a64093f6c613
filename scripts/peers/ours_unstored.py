"""The real locustfile with nothing stored while it drives: what storing rows and answers costs.

Rows wait in memory and are written after the last request; answers are dropped, so nothing is graded.
"""

from greenbench.contract.schema import Event
from loadgen.driver import request_log
from loadgen.longctx import LongContextUser

__all__ = ["LongContextUser"]

kept: dict[int, list[request_log.Row]] = {}
write, close = request_log.RowWriter.write, request_log.RowWriter.close


def keep(self: request_log.RowWriter, row: request_log.Row) -> None:
    if isinstance(row, Event):
        write(self, row)
        return
    kept.setdefault(id(self), []).append(row)
    self.rows += 1


def write_at_last(self: request_log.RowWriter) -> None:
    for row in kept.pop(id(self), []):
        write(self, row)
        self.rows -= 1
    close(self)


request_log.RowWriter.write = keep  # type: ignore[method-assign]
request_log.RowWriter.close = write_at_last  # type: ignore[method-assign]
request_log.Replies.keep = lambda *_: None  # type: ignore[method-assign]
