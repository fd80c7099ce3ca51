"""What a report shows, of finished runs and of damaged ones."""

import json
import re

import pytest

from amg_plugin.errors import InputError

SIGNED = r"[+\u2212][\d.]+"


def changed(folder, tmp_path, change):
    """A copy of a run whose result was changed."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    change(result)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "result.json").write_text(json.dumps(result), encoding="utf-8")
    details = folder / "details.json"
    (tmp_path / "run" / "details.json").write_text(details.read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path / "run"


def test_pruning_writes_its_report_beside_the_result(pruned):
    assert "</html>" in (pruned.folder / "report.html").read_text(encoding="utf-8")


def test_a_run_without_reports_writes_none(trained):
    assert not (trained.folder / "report.html").exists()


def test_the_page_has_the_figures_of_the_result(pruned, own_page):
    words = own_page.words
    for section in ("dense", "pruned", "finetuned"):
        for score in ("mAP", "rank1"):
            assert f"{100 * pruned.result[section][score]:.1f} %" in words
    for heading in ("Before and after", "Course", "What is kept", "Kept positions and attention", "How it was made"):
        assert heading in words
    assert "The last network was trained for 3 epochs more than the first" in words
    assert re.search(rf"mAP, synthetic_reid [\d.]+ % [\d.]+ % {SIGNED} \[{SIGNED}, {SIGNED}\]", words)


def test_every_block_has_its_kept_positions_and_its_attention_before_and_after(pruned, own_page):
    html = own_page.html
    depth = pruned.result["config"]["amg"]["override"]["depth"]
    assert html.count('aria-label="positions that block') == depth
    assert html.count('aria-label="mean attention of block') == 2 * depth
    assert 'href="data:image/png;base64,' in html  # the data is drawn


def test_images_of_a_data_set_are_never_on_the_page(pruned, page, tmp_path):
    def renamed(result):
        for section in ("dense", "pruned", "finetuned"):
            result[section]["targets"] = {"mine": result[section]["targets"]["synthetic_reid"]}
        for entry in result["history"]:
            entry["targets"] = {"mine": entry["targets"]["synthetic_reid"]} if "targets" in entry else None

    assert "data:image" not in page(changed(pruned.folder, tmp_path, renamed)).html


def test_the_page_needs_nothing_besides_itself_and_runs_nothing(pruned, own_page):
    html = own_page.html
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)|url\((?!#)|@import|<script|<link rel="(?!icon)""", html)
    assert "default-src 'none'" in html


def test_folders_of_the_machine_are_on_no_page(pruned, page, tmp_path):
    def placed(result):
        result["arguments"] = [
            "prune",
            "--weights",
            "/home/somebody/log/last.pth",
            "--root=~somebody/data",
            "a.b",
            "../../x/y",
        ]
        result["config"]["amg"]["distill"]["teacher"] = "/home/somebody/secret/teacher.pth"
        result["config"]["amg"]["weights"] = "C:\\Users\\somebody\\vit.pth"

    found = page(changed(pruned.folder, tmp_path, placed))
    assert "amg-reid prune --weights last.pth --root=data a.b y" in found.words
    assert "teacher.pth" in found.words and "vit.pth" in found.words
    for hidden in ("somebody", "secret", "/home", str(pruned.folder.parent)):
        assert hidden not in found.html


def test_what_a_result_holds_is_text_and_never_part_of_the_page(pruned, page, tmp_path):
    def hostile(result):
        result["device"] = "<script>alert(1)</script>"
        result["config"]["amg"]["weights"] = '"><img src=x onerror=alert(1)>'
        for entry in result["history"]:
            if entry["event"] == "epoch":
                entry["loss"] = {"</text><script>alert(2)</script>": 1.0, "b": 2.0}

    html = page(changed(pruned.folder, tmp_path, hostile)).html
    assert "<script" not in html and "<img src=x" not in html


def test_runs_stand_side_by_side_with_the_keys_in_which_they_differ(copied, page):
    path = copied[1] / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    result["config"]["train"]["lr"] = 0.5
    path.write_text(json.dumps(result), encoding="utf-8")
    found = page(*copied)
    assert "2 runs side by side" in found.words
    assert "train.lr 0.001 0.5" in found.words
    assert found.html.count('<th scope="col">') >= 4


def test_without_the_details_of_a_run_there_are_differences_without_intervals(pruned, page, tmp_path):
    folder = changed(pruned.folder, tmp_path, lambda result: None)
    (folder / "details.json").unlink()
    words = page(folder).words
    assert "Before and after" in words and "bootstrap" not in words


def test_times_come_from_a_file_of_bench_in_the_folder_or_from_one_that_is_given(pruned, page, tmp_path):
    row = {"network": "/home/me/best.pth", "form": "fast", "device": "cpu", "threads": 1, "batch": 1, "macs": 5e8,
           "milliseconds": 12.0, "milliseconds_quartiles": [11.0, 13.0], "time_saved": 0.2,
           "time_saved_quartiles": [0.1, 0.3]}  # fmt: skip
    content = {"subjects": [], "cases": [], "environment": {"device": "a CPU", "rounds": 20}, "rows": [row]}
    folder = changed(pruned.folder, tmp_path, lambda result: None)
    given = tmp_path / "given.json"
    given.write_text(json.dumps(content), encoding="utf-8")
    (folder / "bench.json").write_text(json.dumps(content | {"rows": [row | {"batch": 16}]}), encoding="utf-8")
    words = page(folder, bench=[given]).words
    assert "best.pth fast, 1 thread, batch 1 12.0 ms [11.0, 13.0] 500 M 20.0 % [10.0, 30.0]" in words
    assert "batch 16" in words and "/home" not in words


@pytest.mark.parametrize(
    "change",
    [
        lambda result: result.update(history=[{"event": "test"}]),
        lambda result: result.update(dense=3),
        lambda result: result["finetuned"].update(macs="many"),
        lambda result: result.pop("versions"),
    ],
)
def test_a_damaged_result_is_refused_in_a_sentence(pruned, page, tmp_path, change):
    with pytest.raises(InputError, match="cannot be shown: it is damaged"):
        page(changed(pruned.folder, tmp_path, change))


def test_bad_input_is_refused(refused, pruned, tmp_path):
    assert "holds no result.json" in refused("report", tmp_path)
    assert "given twice" in refused("report", pruned.folder, pruned.folder / "result.json", "--output", tmp_path / "a")
    assert "is a folder" in refused("report", pruned.folder, "--output", tmp_path)
    (tmp_path / "x.json").write_text("{}")
    assert "not a file of 'amg-reid bench" in refused("report", pruned.folder, "--bench", tmp_path / "x.json")


def test_the_command_prints_where_the_page_is(amg_reid, pruned, tmp_path):
    outcome = amg_reid("report", pruned.folder, "--output", tmp_path / "page.html")
    assert (outcome.status, outcome.out.strip()) == (0, str(tmp_path / "page.html"))


def test_images_are_there_only_if_asked_for_and_the_page_says_so(
    amg_reid, refused, pruned, trained, own_page, tiny_root, tmp_path
):
    images = tiny_root / "synthetic_reid" / "query"
    words = ["--dense", trained.last, "--images", images, "--ranked", 2, "--root", tiny_root]
    outcome = amg_reid("report", pruned.folder, *words, "--output", tmp_path / "page.html")
    assert outcome.status == 0, outcome.err
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "holds images of people" in html and "holds images of people" not in own_page.html
    depth = pruned.result["config"]["amg"]["override"]["depth"]
    files = len(list(images.glob("*.jpg")))
    assert html.count('alt="block ') == 2 * depth * files
    queries = re.findall(r"first match at rank (\d+) before, (\d+) after", html)
    assert 0 < len(queries) <= 2 and all(before != after for before, after in queries)
    assert html.count('alt="rank ') > 2 * len(queries)
    assert "--dense" in refused("report", pruned.folder, "--ranked", 2)
    assert "one run" in refused("report", pruned.folder, trained.folder, "--ranked", 2)
