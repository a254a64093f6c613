"""Reading a report's page as a person does."""

import re


def words(page: str) -> str:
    """Text of the page without scripts, styles and tags."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", bare).split())
