from greenbench.contract.counted import counted


def test_one_is_no_plural() -> None:
    assert counted(1, "point") == "1 point"
    assert [counted(n, "point") for n in (0, 2)] == ["0 points", "2 points"]


def test_the_verb_goes_with_the_number() -> None:
    assert [counted(n, "row", "is", "are") for n in (1, 2)] == ["1 row is", "2 rows are"]
