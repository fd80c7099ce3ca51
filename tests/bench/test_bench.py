"""The benchmark: what is built, how it alternates, what the rows say, the command."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from amg_plugin import compat
from amg_plugin.bench import table, worker
from amg_plugin.bench.run import Settings, _in_process, check_form, quartiles
from amg_plugin.bench.subject import Subject, joined
from amg_plugin.bench.subjects import from_backbone, from_checkpoint, from_structure, parse_rates, write_form
from amg_plugin.checkpoint import save_checkpoint
from amg_plugin.cli.main import main
from amg_plugin.config.load import load_config
from amg_plugin.deploy.exported_file import open_exported
from amg_plugin.errors import InputError, RunError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.registries.formats import FORMATS, forms
from amg_plugin.utils.files import write_text

SPEC = ModelSpec("vit_tiny_patch16_224", (64, 32), 5, overrides={"depth": 2, "embed_dim": 16, "num_heads": 2})
needs_onnx = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("onnx", "onnxscript", "onnxruntime")), reason="no ONNX here"
)
needs_torchreid = pytest.mark.skipif(not compat.is_installed(), reason="torchreid is not installed")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    model = build_network(SPEC)
    plan = current_plan(model)
    apply_plan(model, plan.narrow(heads=[[0], [0, 1]], tokens=[[0, 3], range(8)]))
    path = tmp_path_factory.mktemp("pruned") / "best.pth"
    preparation = {"height": 64, "width": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    save_checkpoint(path, model, preprocessing=preparation)
    return path


@pytest.mark.parametrize(
    ("words", "rates"),
    [
        ("head25-token25", (0.25, 0.25, 0)),
        ("head40", (0.4, 0, 0)),
        ("token12.5", (0, 0.125, 0)),
        ("head0-token5", (0, 0.05, 0)),
        ("neuron30", (0, 0, 0.3)),
        ("head10-token20-neuron30", (0.1, 0.2, 0.3)),
    ],
)
def test_rates_are_read_from_words(words, rates):
    assert list(parse_rates(words).values()) == pytest.approx(rates)


@pytest.mark.parametrize(
    "words", ["", "-", "25", "head", "token25-head25", "head25-", "-token5", "head25token", "neuron5-head2"]
)
def test_other_words_are_refused(words):
    with pytest.raises(InputError, match="head25-token25"):
        parse_rates(words)


def test_a_structure_is_a_dense_network_and_what_is_left_of_it():
    dense, pruned = from_structure("vit_amg_tiny", ["head25-token25"], (64, 32), variant="kv")
    assert pruned.baseline == dense.name
    assert pruned.plan["variant"] == "kv"
    again = Subject.from_dict(json.loads(json.dumps(pruned.to_dict())))
    assert again == pruned
    plan = current_plan(again.build())
    assert sum(plan.heads_per_block) == 36 - 9
    assert sum(plan.tokens_per_block) == 12 * 8 - 24


def test_merged_networks_are_described_like_others():
    _, block = from_structure("vit_amg_tiny", ["token25"], (64, 32))
    _, merged = from_structure("vit_amg_tiny", ["token25"], (64, 32), variant="merge")
    assert merged.plan["variant"] == "merge" and merged.plan["groups"]
    found, other = merged.describe(), block.describe()
    assert found["macs"] == pytest.approx(other["macs"], rel=0.01)
    assert 0.9 * found["macs"] < found["macs_fast"] < found["macs"]


def test_a_pruned_checkpoint_is_measured_against_its_dense_network(pruned):
    dense, subject = from_checkpoint(str(pruned))
    assert current_plan(dense.build()).is_dense
    assert current_plan(subject.build()).heads_per_block == [1, 2]
    assert subject.baseline == dense.name
    full, left = dense.describe(), subject.describe()
    assert left["macs"] < full["macs"]
    assert left["macs_fast"] < left["macs"]
    assert left["bytes"] == 4 * left["params"]


def test_reducers_stand_beside_every_plan_at_its_macs():
    dense, *others = from_structure("vit_amg_tiny", ["head25-token25", "token40"], (128, 64), reducers=("tome", "evit"))
    whole = dense.describe()["macs"]
    shares = [subject.describe()["macs"] / whole for subject in others]
    assert shares[:3] == pytest.approx([shares[0]] * 3, abs=5e-3)
    assert shares[3:] == pytest.approx([shares[3]] * 3, abs=5e-3)
    methods = [subject.build().spec.reducer for subject in others]
    assert [reducer and reducer.method for reducer in methods] == [None, "tome", "evit"] * 2
    assert {subject.baseline for subject in others} == {dense.name}


MISSING = {
    "onnx": any(find_spec(package) is None for package in ("onnx", "onnxscript", "onnxruntime")),
    "openvino": find_spec("openvino") is None,
    "litert": find_spec("litert_torch") is None,
    "executorch": find_spec("executorch") is None,
}
FILE_FORMS = [
    pytest.param(form, marks=pytest.mark.skipif(MISSING.get(form, False), reason=f"no {form} here")) for form in FORMATS
]


@pytest.mark.parametrize("form", FILE_FORMS)
@needs_torchreid
def test_what_is_written_to_be_measured_gives_the_networks_features(form, tmp_path):
    subject = from_backbone("resnet18", (64, 32))  # of few operators, which are recorded one by one
    model = subject.build()
    path = tmp_path / f"model{FORMATS.row(form).suffixes[0]}"
    write_form(SimpleNamespace(name="resnet18", image_size=(64, 32), build=lambda: model), form, path)
    images = torch.rand(3, 3, 64, 32)
    with torch.no_grad():
        expected = model(images).numpy()
    features = open_exported(path, trusted=True).features(images.numpy())
    assert abs(features - expected).max() <= 1e-4 * abs(expected).max()


def network(name, image_size=(64, 32), baseline="", **fields):
    return Subject(name, "structure", image_size, baseline, **fields)


def test_equal_networks_are_measured_once_and_different_ones_of_a_name_get_numbers():
    first = [network("dense", spec={"arch": "a"}), network("x", baseline="dense")]
    second = [network("dense", spec={"arch": "b"}), network("y", baseline="dense")]
    third = [network("dense", spec={"arch": "b"}), network("z", baseline="dense")]
    found = joined([first, second, third])
    assert [(one.name, one.baseline) for one in found] == [
        ("dense", ""),
        ("x", "dense"),
        ("dense (2)", ""),
        ("y", "dense (2)"),
        ("z", "dense (2)"),
    ]


def test_a_dense_checkpoint_is_the_baseline_of_what_was_pruned_from_its_network(pruned, tmp_path):
    preparation = {"height": 64, "width": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    for name in ("dense", "control"):
        save_checkpoint(tmp_path / f"{name}.pth", build_network(SPEC), preprocessing=preparation)
    other = ModelSpec("vit_tiny_patch16_224", (64, 32), 5, overrides={**SPEC.overrides, "depth": 3})
    save_checkpoint(tmp_path / "other.pth", build_network(other), preprocessing=preparation)
    files = [str(pruned), *(str(tmp_path / f"{name}.pth") for name in ("dense", "control", "other"))]
    found = joined([from_checkpoint(path) for path in files])
    dense, network, *rest = found
    assert (dense.name, dense.path) == (f"{tmp_path.name}/dense.pth", files[1])
    assert (network.path, network.baseline) == (str(pruned), dense.name)
    assert [(one.path, one.baseline) for one in rest] == [(files[2], ""), (files[3], "")]


def test_files_are_called_by_their_name_and_folder(pruned):
    assert from_checkpoint(str(pruned))[1].name == f"{pruned.parent.name}/best.pth"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--height", "-5"], "--height -5"),
        (["--height", "8", "--width", "8"], "osnet_x0_25 does not run on images of 8x8"),
        (["--output", ""], "--output '' is not a name for files"),
        (["--output", "{file}/edge"], "The folder of --output,"),
    ],
)
@needs_torchreid
def test_what_cannot_be_measured_is_refused_before_anything_is(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *given, **more: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    words = [word.format(file=tmp_path / "file") for word in words]
    assert main(["bench", "--backbones", "osnet_x0_25", *words]) == 2
    assert message in capsys.readouterr().err


def test_reducers_without_a_plan_are_refused(capsys):
    assert main(["bench", "--model", "vit_amg_tiny", "--reducers", "tome"]) == 2
    assert "--reducers needs --plan" in capsys.readouterr().err


@needs_torchreid
def test_networks_of_torchreid_are_known_by_name():
    subject = from_backbone("osnet_x0_25", (64, 32))
    assert subject.describe()["macs"] == subject.describe()["macs_fast"] > 0
    with pytest.raises(InputError, match="osnet_x1_0"):
        from_backbone("osnet", (64, 32))


def test_networks_run_in_turn_and_warm_up_does_not_count(monkeypatch):
    monkeypatch.setattr(worker, "SHORTEST_SAMPLE", 0.0)
    order, finished = [], []
    passes = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = worker.measure(passes, rounds=4, warmup=2, report=lambda: finished.append(len(order)))
    assert "".join(order) == "abba" * 3
    assert [len(values) for values in samples.values()] == [4, 4]
    assert finished == [2, 4, 6, 8, 10, 12]


def test_short_passes_are_repeated_within_a_sample(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(worker, "SHORTEST_SAMPLE", 10)
    runs = []
    samples = worker.measure({"a": lambda: runs.append(1)}, rounds=1, warmup=1, report=lambda: None)
    assert len(runs) == 1 + 10
    assert samples["a"] == [0.1]


def result_of(samples, macs=(100, 70)):
    sizes = {"params": 1, "bytes": 4}
    return {
        "command": "amg-reid bench",
        "environment": {"device": "d", "cores": 1, "system": "s", "rounds": 3, "versions": {"torch": "0"}},
        "subjects": [
            {"name": "dense", "baseline": "", "macs": macs[0], "macs_fast": macs[0] - 5, **sizes},
            {"name": "pruned", "baseline": "dense", "macs": macs[1], "macs_fast": macs[1] - 5, **sizes},
        ],
        "cases": [
            {"form": "fast", "device": "cpu", "threads": 1, "batch": 2, "samples": samples, "peak_memory": {"dense": 5}}
        ],
    }


def test_savings_compare_samples_of_the_same_round():
    samples = {"dense": [1.0, 10.0, 2.0], "pruned": [0.7, 8.0, 1.5]}
    dense, pruned = table.rows(result_of(samples))
    assert dense["milliseconds"] == 2000
    assert dense["images_per_second"] == 1.0
    assert dense["peak_memory"] == 5
    assert "time_saved" not in dense
    assert pruned["time_saved"] == pytest.approx(0.25)
    assert pruned["time_saved_quartiles"] == pytest.approx([0.225, 0.275])
    assert pruned["macs_saved"] == pytest.approx(0.3)
    assert pruned["realised"] == pytest.approx(0.25 / 0.3)
    assert (pruned["macs"], pruned["macs_run"]) == (70, 65)


@pytest.mark.parametrize(
    ("pruned", "words"), [(0.8, None), (0.9, "saves 10.0 % of the time only"), (1.1, "is not faster than the dense")]
)
def test_pruning_that_does_not_pay_is_said(pruned, words):
    found = table.rows(result_of({"dense": [1.0] * 3, "pruned": [pruned] * 3}))
    said = table.warnings(found)
    assert [words in sentence for sentence in said] == ([True] if words else [])
    assert ("WARNING" in table.text(found)) == bool(words)


def test_a_plan_that_removes_nothing_has_no_share_to_realise():
    found = table.rows(result_of({"dense": [1.0], "pruned": [1.0]}, macs=(100, 100)))
    assert found[1]["realised"] is None
    assert table.warnings(found) == []
    assert "| pruned |" in table.markdown(result_of({"dense": [1.0], "pruned": [1.0]}), found)


def test_the_time_that_int8_saves_is_not_put_down_to_pruning():
    result = result_of({"dense": [1.0], "pruned": [0.2]})
    result["subjects"][1]["precision"] = "int8"
    (_, row) = table.rows(result)
    assert (row["time_saved"], row["realised"]) == (0.8, None)
    assert table.warnings([row]) == []


def test_a_quantised_file_that_is_slower_is_named():
    result = result_of({"dense": [1.0], "pruned": [1.2]})
    result["subjects"][1]["precision"] = "int8"
    (said,) = table.warnings(table.rows(result))
    assert "int8) is not faster than the dense network in fp32" in said


@pytest.mark.parametrize(("device", "words"), [("cpu", "fast, 2 threads, batch 8"), ("cuda", "fast, cuda, batch 8")])
def test_tables_name_the_threads_of_a_cpu_only(device, words):
    result = result_of({"dense": [1.0], "pruned": [0.5]})
    result["cases"][0].update(device=device, threads=2, batch=8)
    assert list(table.tables(table.rows(result))) == [words]


def test_quartiles():
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (2.0, 3.0, 4.0)


QUICK = ["--rounds", "2", "--warmup", "1", "--device", "cpu"]


def test_the_command_measures_a_checkpoint_and_writes_both_documents(pruned, tmp_path, capsys):
    output = tmp_path / "new" / "edge"
    words = [
        "bench",
        str(pruned),
        *QUICK,
        "--no-memory",
        "--forms",
        "fast",
        "--batch",
        "1",
        "2",
        "--output",
        str(output),
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "fast, 1 thread, batch 2" in printed
    result = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    assert [(case["form"], case["batch"]) for case in result["cases"]] == [("fast", 1), ("fast", 2)]
    assert all(len(values) == 2 for case in result["cases"] for values in case["samples"].values())
    assert result["environment"]["versions"]["torch"]
    assert len(result["rows"]) == 4
    assert str(pruned.parent) not in result["command"]
    text = output.with_suffix(".md").read_text(encoding="utf-8")
    assert "### fast, 1 thread, batch 2" in text
    assert not list(output.parent.glob("*.part"))


@needs_onnx
@needs_torchreid
def test_onnx_runtime_and_torchreids_networks_take_part(capsys):
    words = ["bench", "--model", "vit_amg_tiny", "--plan", "token30", "--backbones", "resnet18", "--no-memory"]
    assert main([*words, "--height", "64", "--width", "32", "--forms", "onnx", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert printed.count("resnet18") == 1
    assert "onnx, 1 thread, batch 1" in printed


@pytest.mark.parametrize("form", FILE_FORMS)
def test_an_exported_file_is_measured_against_its_dense_network(pruned, form, tmp_path, capsys):
    file = tmp_path / f"pruned{FORMATS.row(form).suffixes[0]}"
    batch, words = ("1", []) if FORMATS.row(form).batch == "one" else ("2", ["--dynamic-batch"])
    assert main(["export", str(pruned), "--format", form, *words, "--output", str(file)]) == 0
    assert main(["bench", str(file), "--trusted", "--batch", batch, "--output", str(tmp_path / "edge"), *QUICK]) == 0
    result = json.loads((tmp_path / "edge.json").read_text(encoding="utf-8"))
    dense, ours = result["rows"]
    assert (dense["form"], ours["form"]) == (form, form)
    assert ours["network"] == f"{tmp_path.name}/{file.name}"
    assert ours["baseline"] == dense["network"]
    weights = file.with_suffix(".bin")
    beside = weights.stat().st_size if form == "openvino" else 0
    assert ours["bytes"] == file.stat().st_size + beside
    assert result["cases"][0]["peak_memory"].keys() == {dense["network"], ours["network"]}


def test_an_exported_file_runs_in_its_own_form_beside_a_checkpoint_in_all(pruned, tmp_path, capsys):
    file = tmp_path / "pruned.pt2"
    assert main(["export", str(pruned), "--format", "exported_program", "--output", str(file)]) == 0
    assert main(["bench", str(pruned), str(file), "--trusted", "--no-memory", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert sum(line.startswith(f"{tmp_path.name}/pruned.pt2") for line in printed.splitlines()) == 1
    assert sum(line.startswith(f"{pruned.parent.name}/{pruned.name}") for line in printed.splitlines()) == 3
    assert sum(line.startswith("dense vit_tiny") for line in printed.splitlines()) == 3
    assert [form in printed for form in ("eager, 1", "fast, 1", "exported_program, 1", "onnx, 1")] == [True] * 3 + [
        False
    ]


def test_an_exported_file_that_cannot_be_measured_as_wanted_is_refused(pruned, tmp_path, capsys):
    file = tmp_path / "pruned.pt2"
    assert main(["export", str(pruned), "--format", "exported_program", "--output", str(file)]) == 0
    assert main(["bench", str(file), "--trusted", "--batch", "2", *QUICK]) == 2
    assert "--dynamic-batch" in capsys.readouterr().err
    assert main(["bench", str(file), "--forms", "fast", *QUICK]) == 2
    assert "runs in the form exported_program only" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["openvino", "exported_program"])
def test_forms_that_know_no_gpu_are_refused_on_one(form, monkeypatch):
    monkeypatch.setattr("amg_plugin.bench.run.need", lambda *given: None)
    check_form(form, "cpu")
    with pytest.raises(InputError, match="on cpu only"):
        check_form(form, "cuda")


def test_a_missing_runtime_is_named_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(["bench", "--model", "vit_amg_tiny", "--forms", "openvino"]) == 2
    said = capsys.readouterr().err
    assert "Form openvino needs 'openvino'" in said
    assert "[export]" in said


def test_every_form_can_be_asked_for_as_a_goal():
    for form in forms():
        assert load_config(None, ["amg.latency.form", form]).amg.latency.form == form


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to measure"),
        (["--plan", "head25"], "--plan needs --model"),
        (["--model", "vit_amg_tiny", "--plan", "head"], "head25-token25"),
        (["--model", "vit_amg_tiny", "--plan", "head100"], "impossible"),
        (["--model", "vit_nonsense"], "not a model of timm"),
        (["--model", "vit_amg_tiny", "--threads", "0"], "--threads 0 is impossible"),
        (["--model", "vit_amg_tiny", "--batch", "-1"], "--batch -1 is impossible"),
        (["--model", "vit_amg_tiny", "--rounds", "0"], "at least 1"),
        (["missing.pth"], "does not exist"),
        (["missing.pth", "--height", "64"], "has a size of its own"),
        (["missing.pth", "--stride", "8"], "--variant and --stride are for --model"),
        (["missing.pth", "--variant", "kv"], "--variant and --stride are for --model"),
        (["--model", "vit_amg_tiny", "--output", "results/"], "is not a name for files"),
        (["--model", "vit_amg_tiny", "--device", "cuda"], "no GPU"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_one_sentence(words, said, capsys):
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_in_the_place_of_what_is_written_is_refused(tmp_path, capsys):
    (tmp_path / "edge.md").mkdir()
    assert main(["bench", "--model", "vit_amg_tiny", "--output", str(tmp_path / "edge")]) == 2
    assert "edge.md' is a folder" in capsys.readouterr().err


def test_a_document_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "edge.json").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        write_text(tmp_path / "edge.json", "{}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["edge.json"]


def test_a_process_that_fails_is_named():
    task = {
        "what": "time",
        "form": "eager",
        "packages": ["torch"],
        "threads": 1,
        "batches": [1],
        "device": "nonsense",
        "rounds": 1,
        "warmup": 1,
    }
    dense = from_structure("vit_amg_tiny", [], (32, 32))[0]
    with pytest.raises(RunError, match="form 'eager' failed"):
        _in_process({**task, "subjects": [{"subject": dense.to_dict(), "file": None}]})


def test_settings_leave_threads_to_the_cpu():
    settings = Settings(forms=("eager",), threads=(1, 2), batches=(1,))
    assert settings.processes == [("eager", 1), ("eager", 2)]
    assert Settings(forms=("eager",), threads=(1, 2), device="cuda").processes == [("eager", 1)]
    assert settings.total_rounds == 2 * (20 + 3)


@needs_onnx
def test_a_gpu_that_onnx_runtime_does_not_know_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    Settings(forms=("fast",), device="cuda").check()
    with pytest.raises(InputError, match="onnxruntime-gpu"):
        Settings(forms=("fast", "onnx"), device="cuda").check()
