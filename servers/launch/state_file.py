"""server.json: what is known of a server and its state, for everyone who did not start it."""

import json
from pathlib import Path
from typing import Literal

from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Server
from greenbench.contract.run_dir import write_atomic

SERVER_JSON = "server.json"
SERVER_LOG = "server.log"
State = Literal["booting", "ready", "stopped", "failed"]


class StateFile:
    """Replaced whole at each change, so that a reader never sees half of it."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.server = server
        self.state: State = "booting"

    def create(self) -> None:
        """Make the folder and the first ``booting`` state; raises UserError where that cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.write("booting")
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); give another --out"
            ) from error

    def describe(self, **facts: object) -> None:
        self.server = self.server.model_copy(update=facts)

    def write(self, state: State, error: str | None = None, **facts: object) -> None:
        self.describe(**facts)
        self.state = state
        body = {"state": state, "error": error, "server": self.server.model_dump(mode="json")}
        write_atomic(self.folder / SERVER_JSON, json.dumps(body, indent=1) + "\n")
