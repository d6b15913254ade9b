"""What would end the process, panic or plan for minutes in Lance is refused before Lance sees it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reembed.store.conditions import MOST_BRACKETS, MOST_CHARACTERS, MOST_WORDS, unsafe

# Condition by depth. Lance takes each at the limit.
DEEP = {
    "+": lambda n: "year > " + "1+" * n + "1",
    "-": lambda n: "year > " + "1 - " * n + "1",
    "*": lambda n: "year > " + "1*" * n + "1",
    "/": lambda n: "year > " + "8/" * n + "1",
    "%": lambda n: "year > " + "9%" * n + "5",
    "||": lambda n: "lang = " + "||".join(["lang"] * (n + 1)),
    "=": lambda n: "true = " * n + "(year > 1)",
    "IS TRUE": lambda n: "(year > 1)" + " IS TRUE" * n,
    "IS NULL": lambda n: "year" + " IS NULL" * n,
    "::": lambda n: "year > year" + "::int" * n,
}
NESTED = {
    "(": lambda n: "(" * n + "year > 1" + ")" * n,
    "abs(": lambda n: "year > " + "abs(" * n + "year" + ")" * n,
    "CAST(": lambda n: "year > " + "CAST(" * n + "year" + " AS INT)" * n,
    "AND (": lambda n: "year > 1 AND (" * n + "year > 2" + ")" * n,
    "[1,": lambda n: "year > " + "[1," * n + "1" + "]" * n,
}


def deepest(make, most: int) -> int:
    """The greatest depth that is taken."""
    return max(n for n in range(1, most + 1) if unsafe(make(n)) is None)


@pytest.mark.parametrize("make", DEEP.values(), ids=DEEP)
def test_chains_of_operators_are_bounded(make):
    assert MOST_WORDS // 4 <= deepest(make, MOST_WORDS) <= MOST_WORDS
    assert "words and signs; up to 128" in str(unsafe(make(300)))


@pytest.mark.parametrize("make", NESTED.values(), ids=NESTED)
def test_brackets_are_bounded(make):
    assert unsafe(make(MOST_BRACKETS - 10)) is None
    assert unsafe(make(MOST_BRACKETS + 9)) is not None
    assert "brackets are inside each other; up to 32" in str(unsafe(make(300)))


@pytest.mark.parametrize(
    "condition",
    [
        "NOT " * 200 + "(year > 1)",
        "year" + " BETWEEN 1 AND 1" * 100,
        "(1" + "+1" * 40 + ")" + "+1" * 40 + " = year",  # the left side of the chain is a chain
        "CASE WHEN year > 1 AND " * 50 + "true" + " THEN true END" * 50,
        "lang = '\\' || 'a" + "' || '" * 90 + "'",  # a backslash does not continue a text
        "lang = 'a' /* ' */ || " + "lang || " * 90 + "'b' /* ' */",
        "year > ((((((" + "1+" * 200,
    ],
)
def test_depth_is_seen_where_it_hides(condition):
    assert unsafe(condition) is not None


@pytest.mark.parametrize(
    "condition",
    [
        " OR ".join(f"year = {n}" for n in range(4_000)),
        "year IN (" + ", ".join(map(str, range(9_000))) + ")",
        " AND ".join(["year BETWEEN 1 AND 2"] * 250),
        " AND ".join(["(lang = 'a' OR NOT lang LIKE'b')"] * 250),
        " OR ".join(["(year > 1 AND lang = 'a')"] * 250),
        " OR ".join(["lang IS NOT NULL"] * 1_000),
        "coalesce(" + ", ".join(["year"] * 500) + ") > 1",
        "lang = '" + "1+" * 900 + " $1 ? :a' AND `a$b?` > 1 -- why? $1",
        "year::int > 1",
    ],
)
def test_long_conditions_without_depth_are_taken(condition):
    assert unsafe(condition) is None


SLOW = {
    "AND": (
        " AND ".join(f"year > {n}" for n in range(1_000)),
        "1,000 conditions are joined by AND;",
    ),
    "AND in brackets": (
        " AND ".join(f"(year > {n} AND year < {n})" for n in range(150)),
        "300 conditions are joined by AND;",
    ),
    "OR behind NOT": (
        "NOT (" + " OR ".join(f"year > {n}" for n in range(1_000)) + ")",
        "1,000 conditions are joined by AND and OR;",
    ),
    "sums": (
        " AND ".join("+".join(["year"] * 60) + f" > {n}" for n in range(10)),
        "are 146,410 together; up to 50,000",
    ),
    "sums in a list": (
        "year IN (" + ", ".join("+".join(["year"] * 60) for n in range(10)) + ")",
        "are 141,610 together; up to 50,000",
    ),
    "OR": (" OR ".join(f"a={n}" for n in range(5_600)), "are 50,400 together"),
}
"""What Lance would plan for long: up to a second on a quiet machine."""


@pytest.mark.parametrize(("condition", "why"), SLOW.values(), ids=SLOW)
def test_the_time_to_plan_is_bounded(condition, why):
    assert why in str(unsafe(condition))


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("year = $1", "$1"),
        ("year = ?", "?"),
        ("year IN (1, :old)", ":old"),
        ("lang = $$a$$", "$"),
        ("lang = N'a'", "N"),
        ("lang != r'a'", "r"),
    ],
)
def test_what_stands_for_a_value_is_refused(condition, found):
    assert f"no value for {found};" in str(unsafe(condition))


def test_the_length_is_bounded():
    assert "65,537 characters" in str(unsafe("x" * (MOST_CHARACTERS + 1)))


_IN_LANCE = """
import sys, threading, lance, pyarrow as pa
data = lance.write_dataset(pa.table({"year": range(9), "lang": ["a"] * 9}), "memory://")
def scan():
    for condition in sys.stdin.read().splitlines():
        scanner = data.scanner(filter=condition)
        scanner.explain_plan()
        scanner.to_table()
    print("done")
threading.stack_size(128 * 1024)
thread = threading.Thread(target=scan)
thread.start()
thread.join()
"""


def in_lance(conditions: list[str]) -> subprocess.CompletedProcess[str]:
    """Scan by the conditions in another process, in a thread with a small stack."""
    asked = "\n".join(conditions)
    command = [sys.executable, "-c", _IN_LANCE]
    return subprocess.run(command, input=asked, capture_output=True, text=True, timeout=100)


def test_lance_takes_the_deepest_that_are_given_to_it_in_a_thread_with_a_small_stack():
    deep = [make(deepest(make, MOST_WORDS)) for make in DEEP.values()]
    nested = [make(deepest(make, MOST_BRACKETS)) for n, make in NESTED.items() if n[0] not in "[A"]
    both = "year > " + "(1+" * 20 + "1" + "+1" * 20 + ")" * 20
    long = " OR ".join(["year > 1"] * 5_000)
    assert not any(map(unsafe, [both, long]))
    done = in_lance([*deep, *nested, both, long])
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-500:]


def test_without_the_bound_lance_ends_the_process():
    assert in_lance([DEEP["IS TRUE"](2_000)]).returncode < 0
