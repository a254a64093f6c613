"""What others wrote (a server's words, names in files) as a terminal may see it."""


def visible(text: object) -> str:
    """In one line, with control characters as escapes: nothing moves the cursor, hides text or colours it."""
    return "".join(c if c.isprintable() else _escape(c) for c in str(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
