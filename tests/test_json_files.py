"""JSON that is no JSON, or more than there can be."""

from pathlib import Path

import pytest

from parablock_ray.json_files import from_json, json_file, lines


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": ' * 100_000, '"\\ud800"', '{"\\udfff": 1}', "9" * 5_000, "", "{"]
)
def test_whatever_is_wrong_is_a_value_error(text: str) -> None:
    for each in (text, text.encode()):
        with pytest.raises(ValueError):
            from_json(each)


def test_whole_characters_may_be_escaped() -> None:
    assert from_json('"\\ud83d\\ude00 \\u00e9 \\\\ud800"') == "😀 é \\ud800"


def test_what_is_too_long_is_told_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parablock_ray.json_files.MAX_BYTES", 10)
    file = tmp_path / "rows.jsonl"
    file.write_text("[1]\n[2]\n[1, 2, 3, 4]\n")
    read = lines(file)
    assert [next(read), next(read)] == [(1, b"[1]\n"), (2, b"[2]\n")]
    with pytest.raises(ValueError, match="line 3 is longer than 10 bytes"):
        next(read)
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        json_file(file)
