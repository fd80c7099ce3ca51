"""Run any torchreid script, unchanged, with the plugin's names registered.

torchreid's own ``scripts/main.py`` does not import plugins and knows no ``amg.*`` keys. The launcher
registers, puts the ``amg`` node of a file in force and then runs the script as ``python SCRIPT ARGS...`` would.
"""

import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from amg_plugin.errors import AMGError, InputError

USAGE = "python -m amg_plugin [--amg-config FILE] SCRIPT ARGS..."

HELP = f"""\
usage: {USAGE}
       python -m amg_plugin COMMAND ...

Runs a torchreid script, unchanged, with the models (vit_amg, vit_amg_small, vit_amg_tiny) and data sets of
amg_plugin registered.

  SCRIPT             the script; everything after it goes to the script as it is
  --amg-config FILE  yaml file whose 'amg' node the vit_amg models are built by; torchreid passes them neither
                     an image size nor a structure, so this is how both reach the model
  COMMAND            one of {{commands}}; the same as 'amg-reid COMMAND ...'

example: train a ViT-Ti with torchreid's own script, from a checkout of torchreid

  python -m amg_plugin --amg-config my_amg.yaml scripts/main.py \\
      --config-file my_torchreid.yaml --root reid-data model.name vit_amg_tiny

where my_amg.yaml says, for images of another size than 256x128,

  amg:
    image_size: [224, 112]
"""


def main(argv: Sequence[str]) -> int:
    """Run the launcher.

    Args:
        argv: The words after ``python -m amg_plugin``.

    Returns:
        The exit status: 0, or that of the plugin's error, whose message goes to the error stream. What the
        script itself raises, ``SystemExit`` included, passes through.
    """
    try:
        return _main(list(argv))
    except AMGError as error:
        sys.stderr.write(f"amg_plugin: error: {error}\n")
        return error.exit_status


def _main(argv: list[str]) -> int:
    amg_config, words = _split_options(argv)
    if words and words[0] in ("-h", "--help"):
        sys.stdout.write(HELP.replace("{commands}", ", ".join(_commands())))
        return 0
    if not words:
        raise InputError(f"No script was given; usage: {USAGE} (--help shows an example)")
    if words[0].startswith("-"):
        raise InputError(f"Unknown option '{words[0]}'; allowed before SCRIPT are --amg-config FILE and --help")
    if words[0] in _commands():
        if amg_config is not None:
            raise InputError(f"--amg-config is for scripts, not for '{words[0]}': give that command a --config-file")
        from amg_plugin.cli import main as cli

        return cli.main(words)
    script = _checked_script(words[0])

    from amg_plugin.plugin.registry import register

    register()
    if amg_config is not None:
        from amg_plugin.config.load import apply_amg_node
        from amg_plugin.plugin.active import set_active_amg_config

        set_active_amg_config(apply_amg_node(amg_config))
    run_script(script, words[1:])
    return 0


def _split_options(argv: list[str]) -> tuple[str | None, list[str]]:
    """Take ``--amg-config FILE`` off the front; options after SCRIPT are the script's own."""
    amg_config = None
    words = list(argv)
    while words and words[0].partition("=")[0] == "--amg-config":
        option, equals, value = words.pop(0).partition("=")
        if not equals:
            value = words.pop(0) if words else ""
        if not value:
            raise InputError(f"{option} needs a file; usage: {USAGE}")
        amg_config = value
    return amg_config, words


def _commands() -> list[str]:
    from amg_plugin.cli.main import COMMANDS

    return list(COMMANDS)


def _checked_script(word: str) -> Path:
    path = Path(word)
    if path.is_dir():
        raise InputError(f"SCRIPT '{word}' is a folder: name a Python file in it, such as {path / 'main.py'}")
    if not path.exists():
        raise InputError(
            f"SCRIPT '{word}' does not exist (in {Path.cwd()}): name a Python file "
            f"or one of the commands {', '.join(_commands())}"
        )
    if not os.access(path, os.R_OK):
        raise InputError(f"SCRIPT '{word}' cannot be read: check its permissions")
    return path


def run_script(script: Path, arguments: Sequence[str]) -> None:
    """Run ``script`` as ``python SCRIPT ARGS...`` would.

    ``sys.argv`` and the first entry of ``sys.path`` (the script's folder, so that it finds its neighbours)
    are set for the run and restored afterwards.
    """
    with _as_if_started(script, arguments):
        runpy.run_path(str(script), run_name="__main__")


@contextmanager
def _as_if_started(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    argv, path = sys.argv, sys.path[:]
    sys.argv = [str(script), *arguments]
    if not getattr(sys.flags, "safe_path", False):  # python -P leaves the script's folder out too
        # `python -m` put the current folder first; started directly, the script would not see it.
        if sys.path and sys.path[0] in ("", str(Path.cwd())):
            del sys.path[0]
        sys.path.insert(0, str(script.resolve().parent))
    # Worker processes get a copy of sys.path and must find the plugin, also where it runs from its checkout.
    home = str(Path(__file__).resolve().parents[2])
    if home not in sys.path:
        sys.path.append(home)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
