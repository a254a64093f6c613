"""Writes the JSON Schemas of a run directory's files anew:  python -m greenbench.contract docs/schema"""

import sys
from pathlib import Path

from greenbench.contract.errors import exit_on_user_error
from greenbench.contract.forms import write_schemas


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m greenbench.contract FOLDER", file=sys.stderr)
        return 2
    return exit_on_user_error(lambda: write_schemas(Path(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
