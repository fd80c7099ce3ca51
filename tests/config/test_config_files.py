"""Finding files, inheriting from them, and epochs that come from two places."""

import pytest

from amg_plugin.config import configs_root, find_config, list_configs, load_config, schedule_epochs
from amg_plugin.errors import ConfigError

SCHEDULE = "amg: {schedule: [{target: heads, rate: 0.25, iterations: 3, epochs: 2}]}\n"
EPOCHS = "train: {max_epoch: 9}\n"


@pytest.fixture
def files(tmp_path):
    """Return a function that writes several files and gives back the path of the last one."""

    def write(**texts):
        for name, text in texts.items():
            path = tmp_path / f"{name}.yaml"
            path.write_text(text, encoding="utf-8")
        return path

    return write


# --- Inheritance ------------------------------------------------------------------------------------------


def test_leaf_wins_over_base_and_keeps_the_rest(files):
    cfg = load_config(
        files(
            base="amg: {stride: 8, arch: a, distill: {tau: 1.0}}",
            leaf="_BASE_: base.yaml\namg: {stride: 12}",
        )
    )
    assert (cfg.amg.stride, cfg.amg.arch, cfg.amg.distill.tau) == (12, "a", 1.0)


def test_later_base_wins(files):
    path = files(one="amg: {stride: 8, arch: a}", two="amg: {stride: 12}", leaf="_BASE_: [one.yaml, two.yaml]")
    cfg = load_config(path)
    assert (cfg.amg.stride, cfg.amg.arch) == (12, "a")


def test_base_of_a_base_counts(files):
    path = files(a="amg: {stride: 8}", b="_BASE_: a.yaml", leaf="_BASE_: b.yaml")
    assert load_config(path).amg.stride == 8


def test_base_is_relative_to_the_file_that_says_it(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text("amg: {stride: 8}")
    (tmp_path / "sub" / "leaf.yaml").write_text("_BASE_: ../base.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_config("sub/leaf.yaml").amg.stride == 8


def test_base_may_be_a_shipped_configuration(files):
    path = files(leaf="_BASE_: market1501/vit_tiny\ndata: {save_dir: mine}")
    assert load_config(path).amg.arch == "vit_tiny_patch16_224"


def test_base_reached_twice_does_not_undo_what_came_between(files):
    path = files(
        root="amg: {stride: 4}",
        one="_BASE_: root.yaml\namg: {stride: 8}",
        two="_BASE_: root.yaml",
        leaf="_BASE_: [one.yaml, two.yaml]",
    )
    assert load_config(path).amg.stride == 8


@pytest.mark.parametrize(
    ("texts", "chain"),
    [
        ({"a": "_BASE_: a.yaml"}, "a.yaml -> a.yaml"),
        ({"b": "_BASE_: c.yaml", "c": "_BASE_: a.yaml", "a": "_BASE_: b.yaml"}, "a.yaml -> b.yaml -> c.yaml -> a"),
    ],
)
def test_cycle_is_refused_and_spelt_out(files, texts, chain):
    with pytest.raises(ConfigError, match=f"form a cycle: {chain}"):
        load_config(files(**texts))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: nowhere.yaml", "names 'nowhere.yaml', but there is no file"),
        ("_BASE_: 3", "'_BASE_' in .* is 3, but must be a file name"),
        ("_BASE_: [3]", "must be a file name or a list"),
        ("_BASE_:", "'_BASE_' in .* is None"),
    ],
)
def test_impossible_base_is_refused(files, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(files(leaf=text))


# --- Reading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2", "must hold 'key: value' lines, not a list"),
        ("amg: [", r"is not valid YAML: .*line 1"),
        ("amg: {stride: 1}\namg: {stride: 2}", "key 'amg' is given twice"),
        ("amg: {stride: 2024-13-45}", "is not valid YAML: month must be"),
        ("amg: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_malformed_file_is_refused_by_name(files, text, message):
    path = files(leaf=text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_binary_file_is_refused(tmp_path):
    path = tmp_path / "image.yaml"
    path.write_bytes(b"\xff\xd8\xff\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(path)


def test_empty_file_means_the_defaults(files):
    assert load_config(files(leaf="# nothing\n")) == load_config(None)


# --- Finding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["market1501/vit_base", "market1501/vit_base.yaml"])
def test_shipped_configuration_is_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == configs_root() / "market1501" / "vit_base.yaml"


def test_own_file_wins_over_a_shipped_name(tmp_path, monkeypatch):
    (tmp_path / "market1501").mkdir()
    own = tmp_path / "market1501" / "vit_base.yaml"
    own.write_text("amg: {stride: 8}")
    monkeypatch.chdir(tmp_path)
    assert find_config("market1501/vit_base.yaml") == own


def test_unknown_name_suggests_a_shipped_one():
    with pytest.raises(ConfigError, match="did you mean 'market1501/vit_base'"):
        load_config("market1501/vit_bas.yaml")


def test_far_name_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match="the shipped ones are demo/synthetic, "):
        load_config("zzzz")


def test_bases_are_not_listed():
    assert list_configs()
    assert not any(name.startswith("_base_/") for name in list_configs())


# --- Epochs given twice -----------------------------------------------------------------------------------


def test_schedule_may_inherit_the_epochs_of_the_dense_recipe(files):
    cfg = load_config(files(base=EPOCHS, leaf="_BASE_: base.yaml\n" + SCHEDULE))
    assert (schedule_epochs(cfg), cfg.train.max_epoch) == (6, 9)


def test_schedule_on_the_command_line_may_follow_a_dense_file(files):
    cfg = load_config(files(base=EPOCHS), ["amg.schedule", "[{target: heads, rate: 0.5, epochs: 2}]"])
    assert schedule_epochs(cfg) == 2


def test_schedule_and_epochs_in_one_file_are_refused(files):
    with pytest.raises(ConfigError, match=r"'train\.max_epoch' \(9, from .*'amg\.schedule' .*give one of them"):
        load_config(files(leaf=SCHEDULE + EPOCHS))


def test_schedule_and_epochs_on_one_command_line_are_refused():
    with pytest.raises(ConfigError, match="both given"):
        load_config(None, ["amg.schedule", "[{target: heads, rate: 0.5}]", "train.max_epoch", "3"])


def test_epochs_on_top_of_an_inherited_schedule_are_refused(files):
    with pytest.raises(ConfigError, match="both given"):
        load_config(files(base=SCHEDULE, leaf="_BASE_: base.yaml\n" + EPOCHS))


def test_epochs_on_the_command_line_over_the_schedule_of_a_file_are_refused(files):
    with pytest.raises(ConfigError, match=r"from the command line.*both given"):
        load_config(files(leaf=SCHEDULE), ["train.max_epoch", "3"])


def test_epochs_over_a_schedule_are_fine_for_dense_training(files):
    cfg = load_config(files(leaf=SCHEDULE), ["train.max_epoch", "3"], use_schedule=False)
    assert cfg.train.max_epoch == 3


def test_schedule_taken_away_lets_the_epochs_count(files):
    cfg = load_config(files(leaf=SCHEDULE), ["amg.schedule", "[]", "train.max_epoch", "3"])
    assert (cfg.amg.schedule, cfg.train.max_epoch) == ([], 3)
