"""The real locustfile with nothing stored while it drives: what storing rows and answers costs.

Rows wait in memory and are written after the last request; answers are dropped, so nothing is graded.
"""

from greenbench.schema import Event
from loadgen import writer
from loadgen.longctx import LongContextUser

__all__ = ["LongContextUser"]

kept: dict[int, list[writer.Row]] = {}
write, close = writer.RowWriter.write, writer.RowWriter.close


def keep(self: writer.RowWriter, row: writer.Row) -> None:
    if isinstance(row, Event):
        write(self, row)
        return
    kept.setdefault(id(self), []).append(row)
    self.rows += 1


def write_at_last(self: writer.RowWriter) -> None:
    for row in kept.pop(id(self), []):
        write(self, row)
        self.rows -= 1
    close(self)


writer.RowWriter.write = keep  # type: ignore[method-assign]
writer.RowWriter.close = write_at_last  # type: ignore[method-assign]
writer.Replies.keep = lambda *_: None  # type: ignore[method-assign]
