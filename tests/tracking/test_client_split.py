"""Who holds what, as a line, a table and a picture."""

import io

from rich.console import Console

from parablock_ray.tracking.client_split import split_figure, split_line, split_table

FEW = {"gcd": (3, 0, 5), "lcm": (1, 2, 0)}
MANY = {"gcd": tuple(1 + client % 7 for client in range(100_000))}


def text_of(table) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def test_the_line():
    said = "3 client(s) hold 2 to 5 examples, 4 in the median; 1.3 of 2 labels each on average"
    assert split_line("dirichlet", FEW) == f"split dirichlet: {said}"
    equal = {"gcd": (16,) * 100_000}
    assert split_line("iid", equal).startswith("split iid: 100000 client(s) hold 16 examples each; ")


def test_the_table_shows_some_of_many_from_the_smallest_to_the_largest():
    assert len(text_of(split_table(FEW)).splitlines()) == 1 + 3
    rows = text_of(split_table(MANY)).splitlines()[1:]
    shown = [int(row.split()[1]) for row in rows]
    assert len(rows) == 20
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (1, 7)


def test_the_picture_has_a_bar_a_client_or_the_sizes_of_many():
    [few] = split_figure(FEW).axes
    assert len(few.patches) == 6
    assert [text.get_text() for text in few.get_legend().get_texts()] == ["lcm", "gcd"]  # as the bars stand
    [many] = split_figure(MANY).axes
    assert sum(patch.get_height() for patch in many.patches) == 100_000
    assert len(many.patches) == 7  # a bin for each size


def test_clients_of_one_size_are_one_bar_at_that_size():
    [axes] = split_figure({"gcd": (16,) * 1000}).axes
    [bar] = axes.patches
    assert (bar.get_x() + bar.get_width() / 2, bar.get_height()) == (16, 1000)
