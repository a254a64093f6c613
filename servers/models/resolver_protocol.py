"""What the launcher and its resolver, which run in two Pythons, agree on."""

MARK = "greenbench-model-shapes "  # before the answers, on a line of its own among what libraries print
