"""What models/README.md says of the shipped files."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

MODELS = Path(__file__).resolve().parent.parent / "models"


TOKENS = {"stories-260k": 49_205, "stories-1m": 37_192, "stories-4m": 29_911, "stories-4m-g128": 29_911, "stories-27m": 29_911}


@pytest.mark.parametrize("model, tokens", TOKENS.items())
def test_validation_stories(model, tokens):
    tokenizer = Tokenizer.from_file(str(MODELS / model / "tokenizer.json"))
    *stories, rest = (MODELS / "validation.txt").read_text(encoding="ascii").split("\n<|eos|>\n")
    assert (len(stories), rest) == (202, "")
    encoded = [tokenizer.encode(story).ids for story in stories]
    assert all(ids[0] == 0 and 1 not in ids for ids in encoded)
    assert sum(len(ids) + 1 for ids in encoded) == tokens
    assert tokenizer.decode(encoded[0]) == stories[0]
