"""Each module has a test file of its name in the mirroring folder, or a line here says where it is tested."""

from tests.paths import ROOT
from tests.test_rooms import FILES

ELSEWHERE = {
    "pipeline/cli/building.py": "pipeline/test_cli.py",
    "pipeline/cli/exchanging.py": "pipeline/exchange/test_import_labels.py",
    "pipeline/cli/looking.py": "pipeline/test_cli.py",
    "pipeline/cli/main.py": "pipeline/test_cli.py",
    "pipeline/cli/options.py": "test_frozen_cli.py",
    "pipeline/coco/checks/annotations.py": "pipeline/coco/test_read.py",
    "pipeline/coco/checks/boxes.py": "pipeline/coco/test_read.py",
    "pipeline/coco/checks/categories.py": "pipeline/coco/test_dialects.py",
    "pipeline/coco/checks/images.py": "pipeline/coco/test_read.py",
    "pipeline/coco/checks/remarks.py": "pipeline/coco/test_dialects.py",
    "pipeline/coco/checks/values.py": "pipeline/coco/test_dialects.py",
    "pipeline/coco/records.py": "pipeline/coco/test_read.py",
    "pipeline/coco/source.py": "pipeline/coco/test_rows.py",
    "pipeline/coco/text.py": "pipeline/coco/test_stream.py",
    "pipeline/commands/check.py": "pipeline/commands/test_bad_input.py",
    "pipeline/commands/mine_shard.py": "pipeline/commands/test_negatives.py",
    "pipeline/commands/shortfall.py": "pipeline/commands/test_bad_input.py",
    "pipeline/dataset/build.py": "pipeline/commands/test_chips.py",
    "pipeline/dataset/build_file.py": "pipeline/dataset/test_standing.py",
    "pipeline/dataset/job.py": "pipeline/dataset/test_cutting.py",
    "pipeline/dataset/ledger/compare.py": "pipeline/dataset/test_standing.py",
    "pipeline/dataset/ledger/summary.py": "pipeline/dataset/ledger/test_write.py",
    "pipeline/dataset/plan_files.py": "pipeline/commands/test_chips.py",
    "pipeline/engines/extras.py": "test_wheel.py",
    "pipeline/engines/local.py": "pipeline/engines/test_run.py",
    "pipeline/engines/on_ray.py": "pipeline/engines/test_run.py",
    "pipeline/images/chip.py": "pipeline/images/test_decode.py",
    "pipeline/insight/chip_pictures.py": "pipeline/insight/test_show.py",
    "pipeline/insight/image_picture.py": "pipeline/insight/test_show.py",
    "pipeline/insight/proposals.py": "pipeline/commands/test_negatives.py",
    "pipeline/insight/report/facts.py": "pipeline/insight/report/test_report.py",
    "pipeline/insight/report/remarks.py": "pipeline/insight/report/test_report.py",
    "pipeline/insight/report/tally.py": "pipeline/insight/report/test_report.py",
    "pipeline/insight/sheet.py": "pipeline/insight/test_show.py",
    "pipeline/pages/blocks.py": "pipeline/pages/test_page.py",
    "pipeline/pages/charts.py": "pipeline/pages/test_page.py",
    "pipeline/planning/bins.py": "pipeline/planning/test_cover.py",
    "pipeline/planning/scales.py": "pipeline/planning/test_geometry.py",
    "pipeline/pyramid/merging.py": "pipeline/pyramid/test_views.py",
    "pipeline/storage/locks.py": "pipeline/storage/test_files.py",
    "pipeline/storage/stores.py": "pipeline/storage/test_files.py",
    "pipeline/storage/writing.py": "pipeline/storage/test_files.py",
    "schemas/arrays.py": "trainer/loading/test_order.py",
    "schemas/build.py": "pipeline/dataset/test_standing.py",
    "schemas/codes.py": "pipeline/planning/test_plan.py",
    "schemas/errors.py": "test_exit_status.py",
    "schemas/settings/chips.py": "schemas/settings/test_whole.py",
    "schemas/settings/detect.py": "schemas/settings/test_whole.py",
    "schemas/settings/loader.py": "schemas/settings/test_whole.py",
    "schemas/settings/model.py": "schemas/settings/test_whole.py",
    "schemas/settings/section.py": "schemas/settings/test_listing.py",
    "schemas/settings/train.py": "schemas/settings/test_whole.py",
    "schemas/tables.py": "pipeline/dataset/test_shards.py",
    "trainer/cli.py": "test_exit_status.py",
    "trainer/evaluation/results.py": "trainer/evaluation/test_coco_scores.py",
    "trainer/inference/batches.py": "trainer/evaluation/test_evaluate.py",
    "trainer/inference/extract.py": "trainer/training/test_make_proposals.py",
    "trainer/inference/opening.py": "trainer/evaluation/test_recall.py",
    "trainer/insight/crops.py": "trainer/insight/test_report_run.py",
    "trainer/insight/findings.py": "trainer/insight/test_report_run.py",
    "trainer/insight/history.py": "trainer/insight/test_report_run.py",
    "trainer/learning/ground_truth.py": "trainer/learning/test_targets.py",
    "trainer/learning/losses.py": "trainer/model/test_detector.py",
    "trainer/learning/objective.py": "trainer/model/test_detector.py",
    "trainer/loading/fetch.py": "trainer/loading/test_cache.py",
    "trainer/model/backbone.py": "trainer/model/test_detector.py",
    "trainer/model/heads.py": "trainer/model/test_detector.py",
    "trainer/training/resuming.py": "trainer/training/test_train.py",
    "trainer/training/run.py": "trainer/training/test_loop.py",
}


def test_modules__have_a_test_of_their_name_or_a_line_that_says_where() -> None:
    modules = {path.relative_to(ROOT) for path in FILES.values() if path.name != "__init__.py"}
    for module in sorted(modules):
        mirrored = module.parent / f"test_{module.name}"
        has_own, said = (ROOT / "tests" / mirrored).exists(), ELSEWHERE.get(str(module))
        assert has_own != (said is not None), f"{module}: no tests/{mirrored} and no line here, or both"
        assert said is None or (ROOT / "tests" / said).exists(), f"{module}: there is no tests/{said}"
    assert ELSEWHERE.keys() <= {str(module) for module in modules}
