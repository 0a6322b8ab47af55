"""Texts: sequences of words from a vocabulary that the data have shown."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.spaces.space import TYPES, Packed, Space, numbers_array, whole_numbers
from aaren_rl.errors import InvalidInput

NO_WORD, UNKNOWN, FIRST = 0.0, 1.0, 2
"""Numbers of a missing word, of a word that is not in the vocabulary, and of the vocabulary's first one."""

MOST_WORDS = 10_000
"""Words of a vocabulary; each takes a feature of the model."""

MOST_LENGTH = 1_000
"""Words of a text; every step keeps a number for each."""

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class TextSpace(Space):
    """Texts as the numbers of their words, of which the order does not count.

    Attributes:
        vocabulary: words, sorted; empty before the data were looked at.
        length: words of the longest text.

    Raises:
        InvalidInput: the vocabulary has too many words or one twice, or the length is out of range.
    """

    vocabulary: tuple[str, ...] = ()
    length: int = 1
    _warned: set[str] = field(default_factory=set, init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
        if len(self.vocabulary) > MOST_WORDS or not 1 <= self.length <= MOST_LENGTH:
            raise InvalidInput(
                f"a text of up to {self.length} words from a vocabulary of {len(self.vocabulary)}; expected a length "
                f"from 1 to {MOST_LENGTH} and at most {MOST_WORDS} words, each of which takes a feature of the model"
            )
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise InvalidInput("a vocabulary that has a word twice; expected each word once")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """See `Space.shape`."""
        return (self.length,)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number + FIRST for number, word in enumerate(self.vocabulary)}

    def of_texts(self, texts: Iterable[str]) -> TextSpace:
        """The space with the vocabulary and the length of some texts."""
        split = [words_of(text) for text in set(texts)]
        vocabulary = sorted({word for words in split for word in words})
        # Longer texts are cut when they are packed, and that is said.
        longest = min(max(map(len, split), default=0) or 1, MOST_LENGTH)
        return TextSpace(tuple(vocabulary), longest)

    def pack(self, values: Any, batch: int = 0) -> npt.NDArray[np.float32]:
        """See `Space.pack`; warns of words that are not in the vocabulary, once for each."""
        texts = np.asarray(values, dtype=object)
        if texts.ndim != batch:
            raise InvalidInput(f"texts have {texts.ndim} dimensions; expected {batch}: one text for each value")
        rows: dict[str, list[float]] = {}
        found = []
        for given in texts.ravel():
            text = given.decode(errors="replace") if isinstance(given, bytes) else given
            if not isinstance(text, str):
                raise InvalidInput(f"values are {type(given).__name__}; expected texts")
            if text not in rows:
                rows[text] = self._row(text)
            found.append(rows[text])
        return np.array(found, dtype=np.float32).reshape(*texts.shape, self.length)

    def _row(self, text: str) -> list[float]:
        words = words_of(text)
        unknown = [word for word in words if word not in self._numbers]
        for word in unknown:
            if word not in self._warned and self.vocabulary:
                self._warned.add(word)
                warnings.warn(
                    f"the word {word!r} is not among the {len(self.vocabulary)} of the training data; it counts as an "
                    "unknown word",
                    RuntimeWarning,
                    stacklevel=4,
                )
        if len(words) > self.length and self.vocabulary and "" not in self._warned:
            self._warned.add("")
            warnings.warn(
                f"a text has {len(words)} words, the longest of the training data {self.length}; the rest is left out: "
                f"{text[:200]!r}",
                RuntimeWarning,
                stacklevel=4,
            )
        numbers = [float(self._numbers.get(word, UNKNOWN)) for word in words[: self.length]]
        return numbers + [NO_WORD] * (self.length - len(numbers))

    def unpack(self, packed: Packed, batch: int = 0) -> Any:
        """See `Space.unpack`: the words with a blank between them, unknown ones as a question mark."""
        numbers = numbers_array(packed)
        words = ["", "?", *self.vocabulary]
        texts = [" ".join(filter(None, (words[int(one)] for one in row))) for row in numbers.reshape(-1, self.length)]
        if not batch:
            return texts[0]
        found = np.array(texts, dtype=object).reshape(numbers.shape[:-1])
        return found.tolist()

    def to_json(self) -> dict[str, Any]:
        """See `Space.to_json`."""
        return {"type": "text", "vocabulary": list(self.vocabulary), "length": self.length}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> TextSpace:
        """See `Space.from_json`."""
        vocabulary, (length,) = saved["vocabulary"], whole_numbers([saved["length"]])
        if not isinstance(vocabulary, list) or not all(isinstance(word, str) for word in vocabulary):
            raise TypeError("a vocabulary that is no list of words")
        return cls(tuple(vocabulary), length)


def words_of(text: str) -> list[str]:
    """The words and marks of a text in lower case."""
    return _WORD.findall(text.lower())


TYPES["text"] = TextSpace
