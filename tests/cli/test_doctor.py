"""`amg-reid doctor`: what it reports and when it is content."""

import argparse
import ast
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from amg_plugin.cli import doctor
from amg_plugin.cli.doctor import ABSENT, OK, PROBLEM
from amg_plugin.compat import pip_name
from amg_plugin.registries.formats import FORMATS, optional_packages

CHECKOUT = Path(__file__).resolve().parents[2]


def _run(*words):
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(words))


def _check(name):
    return next(check for check in doctor.collect() if check.name == name)


def test_a_complete_installation_is_healthy(capsys):
    assert _run() == 0, capsys.readouterr().out
    text = capsys.readouterr().out
    assert "everything needed is there" in text
    for name in ("torchreid", "scipy", "cv2", "gdown", "tensorboard", "six", "vit_amg_tiny", "synthetic_reid"):
        assert name in text


def test_json_holds_the_same_checks(capsys):
    assert _run("--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["torch"]["status"] == OK
    assert "layout" in checks["torchreid"]["detail"]


def test_a_missing_need_of_torchreid_is_named_with_its_pip_name(monkeypatch, capsys):
    monkeypatch.setitem(doctor.NEEDED, "package_that_is_not_there", "its-pip-name")
    assert _run() == 1
    text = capsys.readouterr().out
    assert "missing: pip install its-pip-name" in text
    assert "1 problem: see" in text
    assert text.endswith("To mend, run\n  pip install its-pip-name\nand 'amg-reid doctor' again.\n")


def test_a_missing_package_of_a_format_is_no_problem(monkeypatch):
    row = replace(FORMATS.row("onnx"), packages=("package_that_is_not_there",))
    monkeypatch.setitem(FORMATS.rows, "onnx", row)
    assert _check("package_that_is_not_there").status == ABSENT
    assert _run() == 0


def test_a_package_that_is_too_old_is_a_problem(monkeypatch):
    monkeypatch.setitem(doctor.NEEDED, "yacs", "yacs>=999.1")
    check = _check("yacs")
    assert check.status == PROBLEM
    assert check.detail.endswith("too old: pip install --upgrade 'yacs>=999.1'")


def test_a_package_that_does_not_load_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "package_that_breaks.py").write_text("raise OSError('no such library')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(doctor.NEEDED, "package_that_breaks", "its-pip-name")
    check = _check("package_that_breaks")
    assert check.status == PROBLEM
    assert "cannot be imported (OSError: no such library)" in check.detail
    assert check.fix == "pip install --force-reinstall its-pip-name"


def test_commands_that_mend_are_named_once():
    missing = doctor.Check("packages", "a", PROBLEM, "missing: pip install a", "pip install a")
    follows = doctor.Check("registered", "models", PROBLEM, "'a' is missing")
    fine = doctor.Check("packages", "b", OK, "1.0")
    assert doctor.fixes([missing, fine, follows, missing]) == ["pip install a"]
    assert doctor.fixes([follows]) == ["pip install --force-reinstall ."]


def test_a_python_that_is_too_old_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "MINIMUM_PYTHON", (99, 0))
    assert _check("Python").status == PROBLEM


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "do not belong together"),
        ("import package_that_is_not_there", "not checked: ModuleNotFoundError"),
    ],
)
def test_torchvision_of_another_build_is_found_out(any_layout, tmp_path, code, expected):
    (tmp_path / "torchvision.py").write_text(code, encoding="utf-8")  # found before the installed one
    result = any_layout.run("-m", "amg_plugin", "doctor", "--json", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    (check,) = (check for check in json.loads(result.stdout)["checks"] if check["name"] == "torch + torchvision")
    assert check["status"] == PROBLEM
    assert expected in check["detail"]


@pytest.mark.slow
def test_without_torchreid_the_doctor_still_works_and_says_what_to_do(any_layout, tmp_path):
    result = any_layout.run("-m", "amg_plugin", "doctor", "--json", cwd=tmp_path, hide=["torchreid"])
    assert result.returncode == 1, result.stderr
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["torchreid"]["detail"] == "missing: pip install 'torchreid>=0.2.5'"
    assert {name: checks[name]["status"] for name in ("models", "data sets", "engines")} == dict.fromkeys(
        ("models", "data sets", "engines"), PROBLEM
    )
    assert checks["torch"]["status"] == OK


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["git"], indirect=True)  # the installed one is looked at above
def test_with_torchreid_the_doctor_names_the_layout(layout, tmp_path):
    result = layout.run("-m", "amg_plugin", "doctor", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"layout '{layout.name}'" in result.stdout


def test_the_doctor_looks_at_everything_that_setup_declares():
    setup = CHECKOUT / "setup.py"
    if not setup.is_file():
        pytest.skip("the tests do not run from a checkout")
    tree = ast.parse(setup.read_text(encoding="utf-8"))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id in ("REQUIREMENTS", "EXTRAS")
    }
    assert set(doctor.NEEDED.values()) == set(values["REQUIREMENTS"])
    extras = {name for extra in ("export", "litert", "executorch") for name in values["EXTRAS"][extra]}
    assert {pip_name(module) for module in optional_packages() if module not in doctor.NEEDED} == extras


def test_the_running_interpreter_is_named():
    assert sys.executable in _check("Python").detail
