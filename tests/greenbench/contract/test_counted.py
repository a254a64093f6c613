from greenbench.contract.counted import counted, ranged


def test_one_is_no_plural() -> None:
    assert counted(1, "point") == "1 point"
    assert [counted(n, "point") for n in (0, 2)] == ["0 points", "2 points"]


def test_the_verb_goes_with_the_number() -> None:
    assert [counted(n, "row", "is", "are") for n in (1, 2)] == ["1 row is", "2 rows are"]


def test_a_range_of_one_number_is_that_number() -> None:
    assert [ranged(4096, 4096), ranged(999, 3000)] == ["4,096", "999 to 3,000"]
