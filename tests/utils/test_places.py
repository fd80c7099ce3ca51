"""Commands and values without the folders of a machine."""

import pytest

from amg_plugin.utils.places import plain_values, typed_command, without_folders


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/somebody/reid data/last.pth", "last.pth"),
        ("--root=/srv/x", "--root=x"),
        ("~/x/y", "y"),
        ("~somebody/y", "y"),
        ("~", "."),
        ("../../home/somebody/y", "y"),
        ("C:\\Users\\somebody\\y.pth", "y.pth"),
        ("[/srv/a/b, 'c/d', \"~/e/f\"]", "[b, 'c/d', \"f\"]"),
        ("read /srv/x.pth and ~/y", "read x.pth and y"),
        ("log/vit_small/last.pth", "log/vit_small/last.pth"),
        ("https://example.org/a", "https://example.org/a"),
        ("{target: heads, rate: 0.5}", "{target: heads, rate: 0.5}"),
        ("1/2", "1/2"),
        ("", ""),
    ],
)
def test_only_paths_below_the_current_folder_stay_whole(text, left):
    assert without_folders(text) == left


def test_values_keep_their_form():
    assert plain_values({"a": ["/srv/x", 3, None], "b": {"c": "~/y"}}) == {"a": ["x", 3, None], "b": {"c": "y"}}


def test_a_command_can_be_pasted_into_a_shell():
    assert typed_command(["prune", "--root", "/srv/my data", "amg.schedule", "[]"]) == (
        "amg-reid prune --root 'my data' amg.schedule '[]'"
    )
