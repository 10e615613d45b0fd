"""Where a dataset comes from, for those who get a model that was trained on it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a dataset comes from.

    Attributes:
        title: What it is, for people.
        url: The page of its publisher.
        license: The licence under which it is published; empty where this project knows of none.
        citation: Whom to cite.
    """

    title: str
    url: str = ""
    license: str = ""
    citation: str = ""
