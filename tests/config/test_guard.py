"""What no config may hold, whoever wrote it: said with the file or the key, before anything is made of it."""

from pathlib import Path

import pytest

from parablock_ray.config import load_config
from parablock_ray.config.guard import MAX_NODES
from parablock_ray.errors import UserError

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def said(tmp_path: Path, more: str) -> str:
    file = tmp_path / "config.yaml"
    file.write_text(QUICKSTART.read_text("utf-8") + more, "utf-8")
    with pytest.raises(UserError) as refused:
        load_config(file, [])
    return str(refused.value).removeprefix(str(file)).removeprefix(": ")


@pytest.mark.parametrize(
    "secret", ["${oc.env:PLANTED}", "x-${oc.env:PLANTED,y}", "${oc.${name}:PLANTED}", "${ oc.env:PLANTED }"]
)
@pytest.mark.parametrize("key", ["tracking.wandb_project", "name"])
def test_variables_of_the_environment_are_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secret: str, key: str
) -> None:
    monkeypatch.setenv("PLANTED", "a-secret")
    with pytest.raises(
        UserError, match=rf"^{key}: not a valid config: .*only a key of the config may stand in"
    ) as refused:
        load_config(QUICKSTART, [f"{key}={secret}"])
    assert "a-secret" not in str(refused.value)
    assert "only a key of the config may stand in" in said(tmp_path, f"checkpoint: {{keep: '{secret}'}}\n")


def test_as_text_it_may_stand_there() -> None:
    assert load_config(QUICKSTART, [r"name='\${oc.env:HOME}'"]).name == "${oc.env:HOME}"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("a: " + "[" * 30 + "]" * 30, "nested deeper than 20 levels; a config has a few"),
        ("a: [" + "1, " * MAX_NODES + "]", "holds more than 10,000 values, aliases (*) counted; a config has a few"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
            "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]\n",
            "holds more than 10,000 values, aliases (*) counted; a config has a few",
        ),
        ("a: &a [*a]", "*a stands inside of what it stands for, or for nothing"),
        (
            "a: xxxxxxxxxx\n" + "".join(f"a{i}: '{'${a}' if i == 0 else f'${{a{i - 1}}}' * 10}'\n" for i in range(8)),
            "stands for more than 1,000,000 characters, ${…} counted",
        ),
        ("a: ${b}\nb: ${a}", "${…} stands for itself, or for more than 20 others in a row"),
        ("a: !!python/object:os.system x", "it has the tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("a: !!int x", "it has the tag 'tag:yaml.org,2002:int'"),
        ("a: " + "x" * 10_001, "a value is longer than 10,000 characters: 'xxxx"),
        ('a: "b\\0c"', "holds a NUL character, which no name and no path may have"),
        ("a: " + "9" * 5_000, "not a valid config: Exceeds the limit (4300 digits)"),
    ],
    ids=lambda text: text[:12],
)
def test_what_is_too_much_or_no_plain_yaml_is_refused(tmp_path: Path, more: str, reason: str) -> None:
    assert reason in said(tmp_path, more)


@pytest.mark.parametrize("entry", ["/", '"a\\0b"'])
def test_defaults_that_name_no_file(tmp_path: Path, entry: str) -> None:
    (tmp_path / "config.yaml").write_text(f"defaults: [{entry}]\n")
    with pytest.raises(UserError, match=r"config\.yaml: .*(is no name of a file|NUL character)"):
        load_config(tmp_path / "config.yaml", [])


@pytest.mark.parametrize(
    "override", ["name=\udcff", "name=\0", "method.lr=" + "9" * 5_000, "a.a.a.a.a.a.a.a.a.a.a.a=1"]
)
def test_overrides_that_are_no_text_no_number_or_no_key(override: str) -> None:
    with pytest.raises(UserError, match=rf"^{override.partition('=')[0]}: "):
        load_config(QUICKSTART, [override])


def test_very_many_mistakes_are_not_all_told(tmp_path: Path) -> None:
    lines = said(tmp_path, "".join(f"k{i}: 1\n" for i in range(200))).splitlines()
    assert len(lines) == 51
    assert lines[-1] == "and 150 more"
