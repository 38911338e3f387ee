"""The page as text: what it says, what it escapes, and what it does without missing or damaged parts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from acclimate import report
from acclimate.config import Budget
from acclimate.edge.artifact import ArtifactManifest, Calibration
from acclimate.errors import AcclimateError
from acclimate.run import Manifest, Run

Job = Callable[..., tuple[list[Path], Path]]
MakeRun = Callable[..., Path]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Outline(HTMLParser):
    """Elements with their attributes, the visible text, and whether every tag is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def told(file: Path) -> str:
    return Outline(file.read_text()).text


def test_it_is_well_formed_and_holds_everything_itself(page_file: Path) -> None:
    page = page_file.read_text()
    outline = Outline(page)
    assert outline.open == []
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in outline.elements}
    for _, attributes in outline.elements:
        for name in ("src", "href", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "url(" not in page
    assert "@import" not in page
    assert page_file.stat().st_size < 4_000_000
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_verdict_comes_first_and_says_what_was_measured(page_file: Path) -> None:
    text = told(page_file)
    assert text.index("Budget met") < text.index("Accuracy")
    assert "7.2 of 10 ms, 1.9 of 4 MB of model and 0.4 points of AP50 lost in export (1 point allowed)" in text
    assert "closed 62 % of the gap between clear and fog" in text.replace("\u00a0", " ")
    assert "reaches 66.2 points on clear and 40.3 on fog (\u221225.9)" in text
    assert "FP32 (ONNX Runtime) misses it: 12.4 of 10 ms and 6.8 of 4 MB of model" in text


def test_it_says_how_the_checkpoint_was_chosen_and_that_hindsight_is_hindsight(page_file: Path) -> None:
    text = told(page_file)
    assert "the checkpoint of step 500 was chosen without labels" in text
    assert "Best in hindsight" in text
    assert "which decided) ranked the checkpoints well (Kendall\u2019s \u03c4 0.73)" in text
    assert "agreement was no better than chance" in text


def test_it_tells_how_to_repeat_it_and_which_problems_were_found(page_file: Path) -> None:
    text = told(page_file)
    assert "acclimate adapt example.toml --out runs/adapted" in text
    assert "target/017.jpg: truncated; left out" in text


def test_adaptation_that_hurt_and_a_missed_budget_are_said_plainly(job: Job, tmp_path: Path) -> None:
    runs, oracle = job(adapted_ap50=0.38, latency_ms=10.04)
    text = told(report.write(runs, tmp_path / "report.html", oracle=oracle)).replace("\u00a0", " ")
    assert "Budget missed" in text
    assert "misses the budget: 10.04 of 10 ms." in text
    assert "Adaptation hurt: AP50 on fog went from 40.3 to 38.0 points (\u22122.3; 95 %:" in text
    assert "\u221212 %" in text


def test_a_given_budget_takes_the_place_of_the_verified_one(job: Job, tmp_path: Path) -> None:
    runs, _ = job(latency_ms=7.2)
    text = told(report.write(runs, tmp_path / "a.html", budget=Budget(latency_ms=5)))
    assert "misses the budget: 7.2 of 5 ms." in text
    text = told(report.write(runs, tmp_path / "b.html", budget=Budget(latency_ms=20, size_mb=10)))
    assert "also meets the budget" in text


def test_with_a_baseline_source_only_is_the_baseline(job: Job, tmp_path: Path) -> None:
    (source, adapted), oracle = job()
    runs = [oracle, adapted, source.parent / "baseline", source]
    page = report.write(runs, tmp_path / "a.html")
    text = told(page).replace("\u00a0", " ")
    assert "AP50 on fog went from 43.0 to 52.0 points (+9.0; 95 %:" in text
    assert "closed 56 % of the gap" in text
    assert (
        "trained on for the same 400 steps as the adapted model, without any target image; the source run itself"
        in text
    )
    assert "itself reaches 40.3 points on fog" in text
    assert "reaches 67.0 points on clear and 43.0 on fog" in text
    assert "The price: on clear AP50 fell from 67.0 to 65.5 points" in text
    assert "Before: source-only" in text
    assert "longer training" not in text
    assert "may not compare" not in text
    labels = re.findall(r'<tr><th scope="row"><i class="swatch s-(\w+)[^"]*"[^>]*></i>([^<]*)</th>', page.read_text())
    assert labels[:3] == [("source", "Source run"), ("baseline", "Source-only"), ("adapted", "Adapted")]


def test_the_pictures_before_are_those_of_the_baseline(job: Job, tmp_path: Path) -> None:
    (source, adapted), _ = job()
    before = re.compile(r"Before: source-only</b> ([^<]*)<")
    without = before.findall(report.write([source, adapted], tmp_path / "a.html").read_text())
    fair = before.findall(report.write([source, source.parent / "baseline", adapted], tmp_path / "b.html").read_text())
    assert len(without) == len(fair) > 0
    assert without != fair


def test_without_a_baseline_it_says_that_source_only_had_fewer_steps(job: Job, tmp_path: Path) -> None:
    (source, adapted), _ = job()
    text = told(report.write([source, adapted], tmp_path / "a.html"))
    assert "Source-only is the source run as it is (600 steps, the adapted model 600 and 400 more)" in text
    assert f"acclimate adapt {source} --target FOLDER_OF_IMAGES --out runs/baseline adapt.teacher=none" in text
    assert "from 40.3 to 52.0" in text


def test_a_baseline_that_is_not_fair_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    source = make_run("source", target_ap50=0.4)
    notes = {"role": "baseline"}
    short = make_run("short", "adapt", target_ap50=0.41, notes=notes, parents=("runs/source",), schedule=10)
    other = make_run("other", "adapt", target_ap50=0.42, notes=notes, parents=("elsewhere/source-2",))
    adapted = make_run("adapted", "adapt", target_ap50=0.5, parents=("runs/source",))
    text = told(report.write([source, short, adapted], tmp_path / "a.html"))
    assert "trained on for 10 steps, the adapted model for 400: they may not compare" in text
    text = told(report.write([source, other, adapted], tmp_path / "b.html"))
    assert "Source-only started from elsewhere/source-2, which is not" in text
    assert "No adapted run" in told(report.write([source, short], tmp_path / "c.html"))


def test_a_baseline_that_was_not_measured_leaves_the_source_run_to_compare_with(
    make_run: MakeRun, tmp_path: Path
) -> None:
    source = make_run("source", target_ap50=0.4)
    baseline = make_run("baseline", "adapt", notes={"role": "baseline"})
    adapted = make_run("adapted", "adapt", target_ap50=0.5)
    text = told(report.write([source, baseline, adapted], tmp_path / "a.html"))
    assert "from 40.0 to 50.0" in text
    assert "Source-only is the source run as it is" in text


def test_without_a_budget_only_the_accuracy_tolerance_is_judged(
    make_run: MakeRun, measured: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    tolerance = {"max_ap50_drop": 0.01}
    good = measured("onnx-int8", latency_ms=7, size_mb=2, eager=0.5, ap50=0.496, limits=tolerance)
    bad = measured("onnx-int8", latency_ms=7, size_mb=2, eager=0.5, ap50=0.48, limits=tolerance)
    text = told(report.write([make_run("good", "adapt", artifacts=[good])], tmp_path / "good.html"))
    assert "keeps its accuracy: 0.4 points of AP50 lost in export (1 point allowed). No budget was given" in text
    assert "meets the budget" not in text
    text = told(report.write([make_run("bad", "adapt", artifacts=[bad])], tmp_path / "bad.html"))
    assert "Tolerance missed" in text
    assert "2 points of AP50 lost" in text


def test_a_latency_of_other_threads_than_the_budgets_is_not_known(job: Job, tmp_path: Path) -> None:
    runs, _ = job()
    text = told(report.write(runs, tmp_path / "a.html", budget=Budget(latency_ms=10, threads=2)))
    assert "Incomplete" in text
    assert "it was measured on 1 thread, not on 2" in text


def test_what_a_device_measured_stands_beside_what_this_machine_did_and_decides(job: Job, tmp_path: Path) -> None:
    runs, _ = job()
    folder = runs[1] / "artifacts/onnx-int8"
    verified = json.loads((folder / "verification.json").read_text())
    verified["machine"] = {"processor": "Small core", "device": "edge-7:7443", "fingerprint": "ab" * 32}
    verified["latency"]["median_ms"] = 44.0
    verified["latency"]["cpu_ms"] = 44.0
    (folder / "verification.edge-7-abababab.json").write_text(json.dumps(verified))
    text = told(report.write(runs, tmp_path / "report.html"))
    assert "The INT8 artifact (ONNX Runtime) on edge-7:7443 misses the budget" in text
    assert "Adapted, INT8 (ONNX Runtime) also meets the budget" in text
    assert "Small core" in text
    assert "Example CPU" in text
    assert "Adapted, INT8 (ONNX Runtime) on edge-7:7443 44 ms" in text


def test_the_order_of_the_runs_does_not_matter(job: Job, tmp_path: Path) -> None:
    (source, adapted), oracle = job()
    first = told(report.write([source, adapted, oracle], tmp_path / "a.html"))
    second = told(report.write([oracle, adapted, source], tmp_path / "b.html"))
    assert re.sub(r"\d+:\d+ UTC", "", first) == re.sub(r"\d+:\d+ UTC", "", second)


def test_a_source_run_alone_makes_a_report_that_says_what_is_missing(make_run: MakeRun, tmp_path: Path) -> None:
    source = make_run("source", source_ap50=0.66, target_ap50=0.4)
    text = told(report.write([source], tmp_path))
    assert (tmp_path / "report.html").is_file()
    assert "No adapted run" in text
    assert "acclimate adapt" in text
    assert "There is no artifact yet" in text


def test_an_empty_run_and_an_unverified_artifact_make_a_report(make_run: MakeRun, tmp_path: Path) -> None:
    source = make_run("source", log=False)
    artifact = {"artifact": "onnx-int8", "precision": "int8"}
    adapted = make_run("adapted", "adapt", log=False, artifacts=[artifact])
    text = told(report.write([source, adapted], tmp_path / "report.html"))
    assert "Not verified" in text
    assert "no accuracy on the target was measured" in text
    assert "No training curve was logged" in text


def test_a_verification_without_accuracy_is_incomplete(
    make_run: MakeRun, measured: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    bare = measured("onnx-int8", latency_ms=7, size_mb=2, eager=0.5, ap50=0.5) | {"accuracy": {}, "parity": None}
    text = told(report.write([make_run("adapted", "adapt", artifacts=[bare])], tmp_path / "report.html"))
    assert "Budget met" not in text
    assert "Whether the INT8 artifact (ONNX Runtime) meets the budget is not known." in text
    assert "max_ap50_drop=none" in text
    assert "Of what was measured, it keeps 7 of 10 ms and 2 of 4 MB of model" in text


def test_an_unfinished_run_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run("source", source_ap50=0.5)
    Run.open(path).finish("interrupted")
    assert "was interrupted: its numbers are not final" in told(report.write([path], tmp_path / "report.html"))


def test_an_adapted_run_of_another_source_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    source = make_run("source", target_ap50=0.4)
    ours = make_run("ours", "adapt", target_ap50=0.5, parents=("runs/source",))
    other = make_run("other", "adapt", target_ap50=0.5, parents=("elsewhere/raabin",))
    assert "not the source run given here" not in told(report.write([source, ours], tmp_path / "a.html"))
    assert "started from elsewhere/raabin, which is not" in told(report.write([source, other], tmp_path / "b.html"))


def test_a_width_that_was_searched_in_a_bank_has_the_bank_s_source(make_run: MakeRun, tmp_path: Path) -> None:
    source = make_run("source", target_ap50=0.4)
    ours = make_run("bank", "adapt", target_ap50=0.5, parents=("runs/source",))
    other = make_run("other", "adapt", target_ap50=0.5, parents=("elsewhere/raabin",))
    small = make_run("small", "search", target_ap50=0.5, parents=(str(ours),))
    strange = make_run("strange", "search", target_ap50=0.5, parents=(str(other),))
    for name, runs in {"a": [source, small], "b": [source, ours, small]}.items():
        assert "not the source run given here" not in told(report.write(runs, tmp_path / f"{name}.html"))
    page = told(report.write([source, strange], tmp_path / "c.html"))
    assert f"started from {other}, which is not the source run given here" in page


def test_nan_losses_do_not_stop_the_report(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run("source", log=False)
    run = Run.open(path)
    for step in (1, 2):
        run.log(step=step, loss=float("nan"), lr=0.0)
    assert "loss, total" in told(report.write([path], tmp_path / "report.html"))


def test_everything_is_escaped(make_run: MakeRun, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    quoted = '"><img src=x onerror=alert(1)>'
    path = make_run(
        "source",
        source_ap50=0.5,
        target_ap50=0.4,
        classes=(evil, quoted, "car", "a'b"),
        notes={evil: quoted, "problems": [evil]},
        seen=1.0,
        chosen=True,
    )
    run = Run.open(path)
    run.log(step=700, **{evil: 1.0, quoted: 2.0})
    run.write("config.json", {evil: quoted})
    run.manifest = run.manifest.model_copy(update={"command": evil, "machine": {evil: quoted}})
    run.save()
    page = report.write([path], tmp_path / "report.html", title=evil).read_text()
    tags = {tag for tag, _ in Outline(page).elements}
    assert "script" not in tags
    assert "img" not in tags
    assert evil in Outline(page).text


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run.json", "{"),
        ("selection.json", "[]"),
        ("selection.json", '{"rule": 3}'),
        ("evaluations/target_test.json", '{"data": "x"}'),
        ("evaluations/target_test.json", "\x00"),
        ("config.json", "[1]"),
        ("pictures/eager.json", '{"model": "eager"}'),
        ("artifacts/onnx-int8/verification.json", '{"checks": 3}'),
        ("artifacts/onnx-int8/verification.json", "nonsense"),
        ("artifacts/onnx-int8/artifact.json", "[]"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(job: Job, tmp_path: Path, file: str, text: str) -> None:
    (_, adapted), _ = job()
    (adapted / file).write_text(text)
    out = tmp_path / "report.html"
    with pytest.raises(AcclimateError, match=re.escape(Path(file).name)) as caught:
        report.write([adapted], out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_bad_arguments_are_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match="no run folder given"):
        report.write([], tmp_path / "report.html")
    with pytest.raises(AcclimateError, match="not a run folder"):
        report.write([tmp_path / "nowhere"], tmp_path / "report.html")
    path = make_run("source")
    (tmp_path / "file").write_text("")
    with pytest.raises(AcclimateError, match="cannot be written"):
        report.write([path], tmp_path / "file" / "report.html")


def test_several_adapted_runs_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    source = make_run("source", target_ap50=0.4)
    runs = [make_run(f"seed{i}", "adapt", target_ap50=0.4 + i / 100) for i in (1, 2)]
    text = told(report.write([source, *runs], tmp_path / "report.html"))
    assert "Adapted (seed1)" in text
    assert "Adapted (seed2)" in text


def test_a_manifest_without_facts_makes_a_report(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", Manifest(verb="train", notes={"said": {"of": "another version"}, "problems": "one"}))
    text = told(report.write([tmp_path / "run"], tmp_path / "report.html"))
    # Nobody holds its lock, so whoever ran it is gone.
    assert "was interrupted" in text


def test_the_budget_of_the_run_comes_before_the_last_one_tried(job: Job, tmp_path: Path) -> None:
    runs, _ = job(latency_ms=7.2)
    run = Run.open(runs[1])
    run.write("config.json", {**run.read("config.json"), "budget": {"latency_ms": 5.0, "of_a_later_version": 1}})
    assert "misses the budget: 7.2 of 5 ms." in told(report.write(runs, tmp_path / "a.html"))
    text = told(report.write(runs, tmp_path / "b.html", budget=Budget(latency_ms=9)))
    assert "7.2 of 9 ms" in text


def test_a_verification_of_an_artifact_that_was_replaced_says_nothing(job: Job, tmp_path: Path) -> None:
    runs, _ = job()
    for name in ("onnx-int8", "onnx-fp32"):
        file = runs[1] / "artifacts" / name / "artifact.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "fill": 7}))
    text = told(report.write(runs, tmp_path / "report.html"))
    assert "Budget met" not in text
    assert "Not verified" in text
    assert "INT8 (ONNX Runtime) was exported anew after it was verified: verify it again" in text


def test_a_change_is_coloured_where_its_interval_leaves_out_zero(make_run: MakeRun, tmp_path: Path) -> None:
    for chance, word, tone in (
        (0.002, "Adaptation helped: AP50 on fog went from 40.0 to 42.4 points (+2.4; 95", "good"),
        (0.05, "Whether adaptation helped cannot be told on 100 images", ""),
        (None, "Adaptation helped: AP50 on fog went from 40.0 to 42.4 points (+2.4).", ""),
    ):
        folders = [
            make_run(f"source-{chance}", target_ap50=0.4, chance=chance),
            make_run(f"adapted-{chance}", "adapt", target_ap50=0.424, chance=chance),
        ]
        page = report.write(folders, tmp_path / "report.html").read_text()
        assert word in told(tmp_path / "report.html").replace("\u00a0", " ").replace("95 %", "95")
        assert f'<p class="lead second {tone or "neutral"}">' in page
        assert re.findall(r'<td class="number (\w*)">\+2\.4', page) == [tone]
        figure = re.search(r'<div class="(\w+)"><dt>AP50 on fog', page)
        assert figure is not None
        assert figure[1] == (tone or "neutral")
        assert bool(re.search(r"<small>[\d.]+ to [\d.]+</small></td>", page)) == bool(chance)


def test_a_doubtful_calibration_is_in_the_verdict(job: Job, tmp_path: Path) -> None:
    runs, _ = job()
    file = next(runs[-1].glob("artifacts/*int8*/artifact.json"))
    known = Calibration(images=4, digest="", source="fog", foreign=4)
    manifest = ArtifactManifest.model_validate_json(file.read_text())
    file.write_text(manifest.model_copy(update={"calibration": known}).model_dump_json())
    text = told(report.write(runs, tmp_path / "a.html"))
    for doubt in known.doubts():
        assert f"How {file.parent.name} was calibrated is in doubt: {doubt}." in text


def test_a_class_that_fell_is_in_the_verdict_though_the_mean_rose(make_run: MakeRun, tmp_path: Path) -> None:
    source = make_run("source", target_ap50=0.467)
    adapted = make_run("adapted", "adapt", target_ap50=0.491, lost={"bicycle": 0.146})
    text = told(report.write([source, adapted], tmp_path / "report.html"))
    assert "Classes that lost AP50 on fog: bicycle 42.7 \u2192 30.5 (\u221212.2)" in text
    assert text.index("Classes that lost") < text.index("Accuracy of every model")
    old = [
        make_run("source-old", target_ap50=0.467, chance=None),
        make_run("adapted-old", "adapt", target_ap50=0.491, lost={"bicycle": 0.146}, chance=None),
    ]
    text = told(report.write(old, tmp_path / "old.html"))
    assert "lost AP50 on fog, though no interval is known: bicycle 42.7" in text


def test_models_that_were_measured_on_other_images_are_not_subtracted(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run("source", target_ap50=0.4), make_run("adapted", "adapt", target_ap50=0.5)]
    run = Run.open(folders[1])
    run.write("evaluations/target_test.json", {**run.read("evaluations/target_test.json"), "digest": "another"})
    page = report.write(folders, tmp_path / "report.html").read_text()
    assert "+10.0" not in page
    assert "measured on other images" in told(tmp_path / "report.html")


def test_a_source_detector_that_has_not_learnt_is_said_before_anything_else(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run("source", source_ap50=0.022, target_ap50=0.011), make_run("adapted", "adapt", target_ap50=0.03)]
    text = told(report.write(folders, tmp_path / "report.html"))
    said = "The source detector has not learnt: AP50 2.2 on its own domain; train longer or start from pretrained"
    assert text.index(said) < text.index("There is no artifact yet") < text.index("AP50 on fog went")
    folders[0] = make_run("learnt", source_ap50=0.3, target_ap50=0.2)
    assert "has not learnt" not in told(report.write(folders, tmp_path / "report.html"))


def test_one_checkpoint_alone_was_not_chosen(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("adapted", "adapt", target_ap50=0.5, chosen=True)
    run = Run.open(folder)
    selection = run.read("selection.json")
    assert "decided" in told(report.write([folder], tmp_path / "several.html"))
    run.write("selection.json", {**selection, "candidates": selection["candidates"][4:5]})
    text = told(report.write([folder], tmp_path / "one.html"))
    assert "decided" not in text
    assert "there was nothing to choose" in text


def test_the_invented_verification_has_the_real_ones_fields(measured: Callable[..., dict[str, Any]]) -> None:
    from acclimate.verification.record import Verification

    invented = measured("onnx-int8", latency_ms=7, size_mb=2, eager=0.5, ap50=0.49)
    known = json.loads(Verification.model_validate(invented).model_dump_json())
    assert invented.keys() <= known.keys()
    for part in ("parity", "latency"):
        assert invented[part].keys() <= known[part].keys()
    assert invented["accuracy"]["target_test"].keys() <= known["accuracy"]["target_test"].keys()


def test_suppression_is_shown_layer_by_layer(make_run: MakeRun, tmp_path: Path) -> None:
    def measured(cosine: float, update: float) -> dict[str, dict[str, float]]:
        norms = {"gradient": 2.0, "suppressed": 1.5, "weight": 4.0, "chance": 0.1}
        norms |= {"update_cosine": 0.01, "update_cosine_without": 0.2} if update == 0.3 else {}
        return {
            "stem": {"cosine": cosine, "update": update, **norms},
            "blocks.0": {"cosine": -cosine, "update": 2 * update, **norms},
        }

    folders = [make_run("with", "adapt"), make_run("without", "adapt")]
    for folder, strength in zip(folders, (1, 0), strict=True):
        run = Run.open(folder)
        config = run.read("config.json")
        run.write("config.json", {**config, "adapt": {"suppression": {"form": "gradient", "strength": strength}}})
        for step, sign in ((610, 1), (620, -1)):
            run.log(step=step, suppression=measured(0.3 * sign, 0.4 if strength == 0 else 0.3))
    page = Outline(report.write(folders, tmp_path / "report.html").read_text())
    assert "Adapted (with) (suppression: gradient)" in page.text
    assert "Adapted (without) (only measured)" in page.text
    assert "The 2 layers stem blocks.0" in page.text
    plots = [str(plot.get("aria-label")) for name, plot in page.elements if name == "svg" and "aria-label" in plot]
    assert sum("over 2 layers" in label for label in plots) == 6
    along = next(label for label in plots if "(suppression: gradient): cosine of update and weight" in label)
    assert along.endswith("with suppression, without it, in the same steps, of a random direction")
    curves = [attributes["points"] for name, attributes in page.elements if name == "polyline"]
    cosine, updates = curves[-10], curves[-2]
    # Signs do not cancel, so both layers have 0.3; the second moves twice as far as the first.
    assert cosine == "0.00,{0} 100.00,{0}".format(str(cosine).split()[0].split(",")[1])
    first, second = (float(point.split(",")[1]) for point in str(updates).split())
    assert second < first


def test_without_measurements_suppression_is_not_mentioned(page_file: Path) -> None:
    assert "Suppression" not in told(page_file)
