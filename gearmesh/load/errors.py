"""LoadError: the load generator cannot do what was asked."""

from mesh.errors import GearmeshError


class LoadError(GearmeshError):
    """`str()` names the option or file, and what would be right. The command exits 2."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence
