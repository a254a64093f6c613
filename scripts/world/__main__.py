"""results/h200/world.md: what the runs beside it say next to figures that others publish.

    python -m scripts.world    # rewrites the tables between ``<!-- NAME: begin -->`` and its end

world.json holds the published figures that are used, and where each is from. Ours are layers.json of each
card and archived runs. MFU and MBU are by ``analysis.model.work`` over the spec sheet's peaks, of both sides.
"""

import sys

from greenbench.contract.errors import exit_on_user_error
from greenbench.contract.run_dir import write_atomic
from scripts.world.page import PAGE, filled
from scripts.world.published import load_world
from scripts.world.runs import read_ours
from scripts.world.steps import PIECES


def main() -> int:
    write_atomic(PAGE, filled(PAGE.read_text(), load_world(), read_ours(PIECES)))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
