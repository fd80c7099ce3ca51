"""What the command line asks to be measured. Light: of exported files alone, PyTorch is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amg_plugin import compat
from amg_plugin.bench.subject import Subject, exported_file, joined
from amg_plugin.errors import InputError
from amg_plugin.registries.formats import USUAL_FORMS, file_format, forms

_SIZE = (256, 128)


@dataclass(frozen=True)
class Request:
    """Networks and forms as the command line names them, option by option; ``forms=None`` is what suits all of them."""

    checkpoints: Sequence[str] = ()
    model: Sequence[str] = ()
    plan: Sequence[str] = ()
    variant: str = "block"
    reducers: Sequence[str] = ()
    stride: int = 0
    height: int | None = None
    width: int | None = None
    backbones: Sequence[str] = ()
    forms: Sequence[str] | None = None
    batch: Sequence[int] = (1,)
    trusted: bool = False

    def _check(self) -> None:
        """Check what can be known without opening a file."""
        built, sized = bool(self.model or self.backbones), not (self.height is None and self.width is None)
        faults = {
            "--plan needs --model, the network that it prunes.": self.plan and not self.model,
            "--reducers needs --plan, whose MACs they are brought to.": self.reducers and not self.plan,
            "There is nothing to measure: give checkpoints, --model or --backbones.": not (self.checkpoints or built),
            "--variant and --stride are for --model; a checkpoint has its own.": (
                not self.model and (self.variant != "block" or self.stride)
            ),
            "--height and --width are for --model and --backbones; a checkpoint has a size of its own.": (
                sized and not built
            ),
            f"--height {self.image_size[0]} --width {self.image_size[1]} is impossible; allowed are numbers from 1.": (
                min(self.image_size) < 1
            ),
        }
        for sentence, applies in faults.items():
            if applies:
                raise InputError(sentence)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of what has no checkpoint."""
        return tuple(usual if n is None else n for n, usual in zip((self.height, self.width), _SIZE, strict=True))

    def chosen_forms(self) -> tuple[str, ...]:
        """The forms to measure in.

        Raises:
            InputError: If one is unknown, or an exported file runs in none of them.
        """
        if unknown := set(self.forms or ()) - set(forms()):
            raise InputError(f"--forms '{min(unknown)}' is unknown; allowed are {', '.join(forms())}.")
        formats = {path: file_format(path) if Path(path).is_file() else None for path in self.checkpoints}
        if self.forms is not None:
            for path, found in formats.items():
                if found not in (None, *self.forms):
                    said = f"'{path}' runs in the form {found} only: add it to --forms, or leave --forms out."
                    raise InputError(said)
            return tuple(dict.fromkeys(self.forms))
        in_torch = self.model or self.backbones or not formats or None in formats.values()
        return tuple(dict.fromkeys([*(USUAL_FORMS if in_torch else ()), *filter(None, formats.values())]))

    def subjects(self) -> list[Subject]:
        """The networks, each with its dense one; exported files alone where torch is not installed.

        Raises:
            InputError: If something given cannot be measured.
        """
        self._check()
        exported = [path for path in self.checkpoints if Path(path).is_file() and file_format(path)]
        if len(exported) == len(self.checkpoints) and not (
            self.model or self.backbones or compat.is_installed("torch")
        ):
            return joined([[exported_file(path, self.batch, self.trusted)] for path in exported])
        from amg_plugin.bench import subjects

        groups = [
            subjects.from_exported(path, self.batch, self.trusted)
            if path in exported
            else subjects.from_checkpoint(path)
            for path in self.checkpoints
        ]
        reducers = list(dict.fromkeys(self.reducers))
        groups += [
            subjects.from_structure(model, self.plan, self.image_size, self.stride, self.variant, reducers)
            for model in self.model
        ]
        return joined([*groups, [subjects.from_backbone(name, self.image_size) for name in self.backbones]])
