from build_scripts.sentences import sentences


def test_texts_are_distinct_and_of_mixed_length() -> None:
    texts = sentences(200)
    words = sorted(len(text.split()) for text in texts)
    assert len(set(texts)) == 200
    assert words[0] <= 8
    assert sum(count > 220 for count in words) >= 8  # cut at 256 tokens
    assert texts == sentences(200)
