"""What README and docs/ promise: links, command lines, Python examples, names of files and modules."""

import argparse
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml
from occluded_folders import write_occluded_reid, write_partial_reid
from PIL import Image

import amg_plugin
from amg_plugin import compat, get_default_config
from amg_plugin.cli import main as cli
from amg_plugin.config import find_config
from amg_plugin.data.synthetic.reid import SyntheticSpec, write_synthetic_reid

CHECKOUT = Path(__file__).resolve().parent.parent
README = CHECKOUT / "README.md"
DOCUMENTS = sorted(path for path in (*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")))
if not DOCUMENTS:
    pytest.skip("the tests do not run from a checkout", allow_module_level=True)
#: Pages that tell what was, and that tests of their own run as they are printed.
HISTORY, RECIPES = CHECKOUT / "CHANGELOG.md", CHECKOUT / "docs" / "extending.md"
FOLDERS = ("amg_plugin", "benchmarks", "configs", "docs", "tests", "tools", *cli.COMMANDS)


def blocks(path, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def command_lines():
    for path in DOCUMENTS:
        for block in blocks(path, ""):
            for line in block.replace("\\\n", " ").splitlines():
                for command in line.split("&&"):
                    program, _, rest = command.strip().partition(" ")
                    if program.removeprefix(".venv/bin/") == "amg-reid":
                        yield pytest.param(shlex.split(rest), id=f"{path.name}: {rest[:40]}")


def links():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                yield pytest.param(path, target, id=f"{path.name}: {target}")


def anchors(path):
    """The names that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def code_words(pattern):
    """What stands in single backticks and looks like ``pattern``, by page."""
    for path in DOCUMENTS:
        if path != HISTORY:
            for word in sorted(set(re.findall(rf"`({pattern})`", path.read_text(encoding="utf-8")))):
                yield pytest.param(word, id=f"{path.name}: {word}")


@pytest.mark.parametrize("page, target", list(links()))
def test_links_within_the_repository_lead_somewhere(page, target):
    name, _, anchor = target.partition("#")
    found = page.parent / name if name else page
    assert found.exists()
    assert not anchor or anchor in anchors(found)


@pytest.mark.parametrize("words", list(command_lines()))
def test_command_lines_are_understood(words):
    first = cli.build_parser().parse_args(words)
    parser = cli.command_parser(first.name)
    mixed = parser.get_default("opts") is not None
    args = parser.parse_intermixed_args(first.words) if mixed else parser.parse_args(first.words)
    if getattr(args, "config_file", None):
        find_config(args.config_file)


def scripts():
    for path in DOCUMENTS:
        for block in blocks(path, ""):
            for name, rest in re.findall(
                r"^python ((?:tools|benchmarks)/\w+\.py)(.*)$", block.replace("\\\n", " "), re.M
            ):
                yield pytest.param(CHECKOUT / name, rest, id=f"{path.name}: {name}{rest[:30]}")


@pytest.mark.parametrize("script, words", list(scripts()))
def test_scripts_have_the_options_that_are_shown(script, words):
    text = script.read_text(encoding="utf-8")
    assert [
        option
        for option in re.findall(r"(?<= )--[\w-]+", words)
        if f'"{option}"' not in text and f'"{option[2:]}"' not in text
    ] == []


@pytest.mark.parametrize("name", list(code_words(r"amg_plugin(?:\.\w+)+")))
def test_python_names_exist(name):
    if (CHECKOUT / name).suffix in (".json", ".checkpoint", ".export"):
        return  # a file, or what a file calls its format
    words = name.split(".")
    value = importlib.import_module(words[0])
    for number, word in enumerate(words[1:], start=2):
        try:
            value = getattr(value, word)
        except AttributeError:
            value = importlib.import_module(".".join(words[:number]))


def options_of(parser):
    """The options of a parser and of its commands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found = found.union(*map(options_of, action.choices.values()))
    return found


@pytest.fixture(scope="module")
def options():
    """The options of all commands, and those of tools that pages mention."""
    elsewhere = ("seeds", "methods", "steps", "saving", "latency", "sections", "rounds", "reference", "opt_out")
    parsers = [cli.build_parser(), *map(cli.command_parser, cli.COMMANDS)]
    return set().union(*map(options_of, parsers)) | {f"--{name}" for name in elsewhere}


@pytest.mark.parametrize("words", list(code_words(r"(?:amg-reid \w[^`]*|--?[a-z][^`]*)")))
def test_commands_and_options_exist(words, options):
    program, *rest = words.split()
    assert program != "amg-reid" or rest[0] in (*cli.COMMANDS, "COMMAND")
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", words)) <= options


@pytest.mark.parametrize("key", list(code_words(r"amg\.[a-z_.]+[a-z]")))
def test_configuration_keys_exist(key):
    node = get_default_config()
    for name in key.split("."):
        node = node[name]


@pytest.mark.parametrize("name", list(code_words(r"(?:\w+/)+\w+\.py")))
def test_files_of_the_repository_exist(name):
    assert name == "scripts/main.py" or (CHECKOUT / name).is_file() or (CHECKOUT / "amg_plugin" / name).is_file()


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


def test_the_citation_is_that_of_the_readme():
    cited = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text(encoding="utf-8"))
    article, text = cited["preferred-citation"], README.read_text(encoding="utf-8")
    assert cited["version"] == amg_plugin.__version__
    assert f"{{{article['title']}}}" in text
    assert " and ".join(f"{author['family-names']}, {author['given-names']}" for author in article["authors"]) in text


def test_every_page_is_in_the_index():
    index = (CHECKOUT / "docs" / "README.md").read_text(encoding="utf-8")
    docs = CHECKOUT / "docs"
    pages = {str(path.relative_to(docs)) for path in (*docs.glob("*.md"), *docs.glob("tutorials/*.*"))} - {"README.md"}
    # The rows of its tables are the navigation of the site.
    assert pages <= set(re.findall(r"^\| \[[^\]]*\]\(([\w./]+)\)", index, re.MULTILINE))


def test_every_picture_has_a_caption():
    pages = {path.name: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    alone = {name: re.findall(r"^!\[[^\]]*\]\(([^)]*)\)$(?!\n\n\*[^*\n])", text, re.M) for name, text in pages.items()}
    assert {name: pictures for name, pictures in alone.items() if pictures} == {}


def test_every_command_is_on_the_page_of_commands():
    named = re.findall(
        r"^\| `([\w-]+)` \|", (CHECKOUT / "docs" / "commands.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(named) == sorted(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_leads_to_a_page_about_it(name):
    (page,) = re.findall(r"^more: (docs/\S+)$", cli.command_parser(name).format_help(), re.MULTILINE)
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    assert f"amg-reid {name}" in text or f"`{name}`" in text


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with what the examples find on a user's disk, all of it small."""
    import torch
    import torchreid

    import amg_plugin

    folder = tmp_path_factory.mktemp("workspace")
    spec = SyntheticSpec(train_ids=16, test_ids=4, cameras=2, cameras_per_id=2, width=16, height=32)
    drawn = write_synthetic_reid(folder / "reid-data", spec, seed=1)
    market = folder / "reid-data" / "market1501" / "Market-1501-v15.09.15"
    market.parent.mkdir()
    market.symlink_to(drawn, target_is_directory=True)
    write_occluded_reid(folder / "reid-data" / "occluded_reid")
    write_partial_reid(folder / "reid-data" / "partial_reid")
    (folder / "query").mkdir()
    for name in ("0001.jpg", "0002.jpg"):
        Image.new("RGB", (64, 128), "white").save(folder / "query" / name)
    model = torchreid.models.build_model("vit_amg_tiny", num_classes=8, loss="softmax", pretrained=False)
    (folder / "my_amg.yaml").write_text("amg:\n  arch: vit_tiny_patch16_224\n", encoding="utf-8")
    (folder / "log" / "model").mkdir(parents=True)
    torch.save({"state_dict": model.state_dict(), "epoch": 60}, folder / "log" / "model" / "model.pth.tar-60")
    images = {"height": 256, "width": 128, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    amg_plugin.save_checkpoint(folder / "log" / "vit_small_pruned" / "best.pth", model, preprocessing=images)
    return folder


def examples():
    for path in DOCUMENTS:
        if path != RECIPES and path.parent.name != "tutorials":
            for number, code in enumerate(blocks(path, "python"), start=1):
                yield pytest.param(code, id=f"{path.name} {number}")


@pytest.mark.skipif(not compat.is_installed(), reason="torchreid is not installed")
@pytest.mark.parametrize("code", list(examples()))
def test_python_examples_run_and_print_what_they_say(code, workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    code = code.replace("model.onnx", "log/vit_small_pruned/best.pth")  # the same class, without onnxruntime
    names = {"__name__": "example"}
    exec(compile(code, "example", "exec"), names)
    promised = re.findall(r"^print\(.*# (\d+)$", code, re.MULTILINE)
    assert not promised or capsys.readouterr().out.split() == promised
    if shape := re.search(r"^features = .*# \[([\d, ]+)\]$", code, re.MULTILINE):
        assert list(names["features"].shape) == [int(number) for number in shape[1].split(",")]


def test_the_picture_of_the_readme_is_what_its_script_draws():
    picture = runpy.run_path(str(CHECKOUT / "docs" / "figures" / "draw_method.py"))["picture"]
    assert (CHECKOUT / "docs" / "figures" / "method.svg").read_text(encoding="utf-8") == picture()
