"""Writes the JSON Schemas of a run directory's files anew:  python -m greenbench.contract docs/schema"""

import argparse
import sys
from pathlib import Path

from greenbench.contract.errors import exit_on_user_error
from greenbench.contract.forms import write_schemas


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m greenbench.contract", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    return exit_on_user_error(lambda: write_schemas(folder))


if __name__ == "__main__":
    sys.exit(main())
