"""What a message must name; how it words that is its own affair."""


def names(message: str, *named: object) -> bool:
    """Each of these is in the message, as `str` writes it."""
    return all(str(each) in message for each in named)
