"""The configurations of the papers' tables, and what --dry-run prints of them."""

from pathlib import Path

import pytest

from calibrant.cli.compare import read_config
from calibrant.cli.main import main
from calibrant.compare import command, preview
from calibrant.compare.settings import CompareSettings
from calibrant.errors import CalibrantError
from calibrant.options import read

CONFIGS = Path(__file__).parents[2] / "configs"
OWN_DATA = {"table1_smollm2", "stability_smollm2"}  # files whose data are given on the command line
FILES = sorted(CONFIGS.rglob("*.yaml"))
LARGE = [file for file in FILES if file.parent == CONFIGS and file.stem not in OWN_DATA]
SMALL = [file for file in FILES if file not in LARGE]


def compared(file: Path, folder: Path) -> command.Comparison:
    """What a file compares; SmolLM2's reading task has data of its own."""
    own, training, _ = read_config(file)
    if file.stem in OWN_DATA:
        data = folder / "data.jsonl"
        data.write_text('{"question": "Who?", "context": "Ann came.", "answers": ["Ann"]}\n' * 20)
        training["data"] = str(data)
    return command.comparison(read(CompareSettings, own), training, folder / "out")


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_file_resolves_to_cells_without_a_model(file: Path, tmp_path: Path) -> None:
    found = compared(file, tmp_path)
    planned = found.plan()
    models = {cell.training.model for cell in found.cells}
    assert len(planned) == len(found.cells) * len(found.settings.seeds) + len(models)
    assert not any(one.complete for one in planned)


@pytest.mark.parametrize("file", LARGE, ids=lambda file: file.stem)
def test_large_files_say_what_they_reproduce_and_need(file: Path) -> None:
    about = read_config(file).about
    for name in ("reproduces", "splits", "model revision", "checksums", "left open by the paper", "expected"):
        assert about[name]
    assert "computed" in str(about["expected"])


def test_each_large_file_has_a_small_one() -> None:
    scaled = " ".join(str(read_config(file).about.get("scaled from", "")) for file in SMALL)
    with_one = {file.stem for file in LARGE if f"configs/{file.name}" in scaled}
    assert {file.stem for file in LARGE} - with_one == {"gcpo_table2_olympiad", "gcpo_figure5_models"}


def test_a_dry_run_prints_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(left: object) -> tuple[float, float]:
        raise CalibrantError("no hub")

    monkeypatch.setattr(preview, "_from_model", no_model)
    file = CONFIGS / "gcpo_table1.yaml"
    assert main(["compare", "--config", str(file), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for words in ("reproduces: GCPO, table 1", "left open by the paper", "expected:", "gcpo_bot/seed-2", "narrativeqa"):
        assert words in printed
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_a_small_file_estimates_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = str(CONFIGS / "small" / "gcpo_f5.yaml")
    assert main(["compare", "--config", small, "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert "a step: about" in capsys.readouterr().out


def test_about_has_to_be_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("methods: [grpo]\nabout: text\n")
    with pytest.raises(CalibrantError, match=r"'about' in .* is no mapping"):
        read_config(file)
