"""The cells of a comparison, and what is refused before anything is run."""

import pytest
from refusals import refused

from calibrant.compare.cells import make_cells
from calibrant.compare.command import comparison
from calibrant.compare.plan import model_label, models
from calibrant.compare.settings import CompareSettings
from calibrant.errors import CalibrantError
from calibrant.options import read
from calibrant.train.settings import resolve_settings


def cells(given=None, **options):
    return make_cells(read(CompareSettings, options), given or {})


def names(**options):
    return [cell.name for cell in cells(**options)]


def test_a_cell_is_a_method_with_options_of_training_and_of_its_own():
    first, second, third = cells(
        {"steps": 7}, methods=["grpo", "grpo_care,form=agreement", "gcpo_cd,alpha=0.3,learning-rate=1e-5"]
    )
    assert [cell.name for cell in (first, second, third)] == [
        "grpo", "grpo_care,form=agreement", "gcpo_cd,alpha=0.3,learning_rate=1e-05",
    ]  # fmt: skip
    assert second.training.method_options == {"form": "agreement"} and second.training.steps == 7
    assert (third.training.alpha, third.training.learning_rate) == (0.3, 1e-5)
    assert third.options == {"method": "gcpo_cd", "alpha": 0.3, "learning_rate": 1e-5}
    assert third.with_seed(4).seed == 4 and not third.training.evaluation


def test_a_yaml_file_names_cells():
    (cell,) = cells(cells={"mine": {"method": "gcpo_bot", "alpha": 0.9, "learning_rate": 1e-3}})
    assert (cell.name, cell.training.alpha, cell.training.learning_rate) == ("mine", 0.9, 1e-3)


def test_varied_options_make_all_combinations_of_the_methods_that_have_them(caplog):
    vary = [["alpha", "0", "0.6"], ["learning-rate", "1e-5", "1e-4"]]
    assert names(methods=["grpo", "gcpo_cd"], vary=vary) == [
        "grpo,learning_rate=1e-05", "grpo,learning_rate=0.0001",
        *(f"gcpo_cd,alpha={alpha},learning_rate={rate}" for alpha in ("0", "0.6") for rate in ("1e-05", "0.0001")),
    ]  # fmt: skip
    assert "grpo has no 'alpha'" in caplog.text


def test_a_varied_hyperparameter_and_a_strength_belong_to_the_methods_that_have_them():
    methods = ["grpo", "grpo_care", "rd_only"]
    assert names(methods=methods, vary={"form": ["likelihood", "agreement"]}) == [
        "grpo", "grpo_care,form=likelihood", "grpo_care,form=agreement", "rd_only",
    ]  # fmt: skip
    assert names(methods=methods, vary={"strength": [0.1]}) == ["grpo", "grpo_care", "rd_only,strength=0.1"]


def test_an_option_for_all_cells_holds_for_those_that_have_it():
    grpo, gcpo = cells({"alpha": 0.2}, methods=["grpo", "gcpo_cd"])
    assert (grpo.training.alpha, gcpo.training.alpha) == (None, 0.2)


def test_shared_settings_are_alike_but_for_what_makes_a_method_what_it_is():
    own = {"method", "method_options", "cluster_text", "num_iterations"}
    methods = ["grpo", "seed_grpo", "capo", "grpo_care", "empo", "r2vpo"]
    first, *others = (vars(cell.training) for cell in cells(methods=methods))
    assert all(first[name] == other[name] for other in others for name in first if name not in own)
    assert [other["cluster_text"] for other in others] == ["answer", None, None, "answer", None]
    assert others[-1]["num_iterations"] == 2
    (capo,) = cells(methods=["capo"], settings="recommended")
    assert capo.training == resolve_settings({"method": "capo", "evaluation": False})
    assert capo.training.beta == 0 != first["beta"]


def test_a_model_is_a_folder_name_too():
    assert names(methods=["grpo"], vary={"model": ["Qwen/Qwen2.5-1.5B", "/models/a"]}) == [
        "grpo,model=Qwen-Qwen2.5-1.5B", "grpo,model=models-a",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options, words",
    [
        ("--methods grpo grpo", "the cell 'grpo' is given twice"),
        ("--methods gcpo_cd,alpha=0.3 gcpo_cd,alpha=0.30", "the cell 'gcpo_cd,alpha=0.3' is given twice"),
        ("--methods grpo grpo,steps=60", "the cells 'grpo' and 'grpo,steps=60' have equal options"),
        ("--methods grpo gcpo_bott", "unknown method 'gcpo_bott' (did you mean 'gcpo_bot'?)"),
        ("--methods grpo --seeds 1 1", "names a seed twice"),
        ("--methods grpo gcpo_cd --baseline rd_only", "the baseline 'rd_only' is not among the cells"),
        ("--methods grpo gcpo_cd --vary alfa 0 1", "unknown option 'alfa' of --vary (did you mean 'alpha'?)"),
        ("--methods grpo rloo --vary alpha 0 1", "none of the methods has the option 'alpha'"),
        ("--methods grpo --vary alpha", "option 'vary' cannot be"),
        ("--methods grpo --vary steps 5 --vary steps 6", "option 'vary' cannot be"),
        ("--methods gcpo_cd,alpha=1 --vary alpha 0 1", "sets 'alpha', which --vary varies"),
        ("--methods gcpo_cd,alpha=-1", "the cell 'gcpo_cd,alpha=-1'"),
        ("--methods gcpo_cd,form=x", "has no hyper-parameter 'form'"),
        ("--methods grpo,seed=3", "sets 'seed', which all cells share"),
        ("--methods grpo grpo,eval_prompts=3", "sets 'eval_prompts', which all cells share"),
        ("--methods grpo --vary steps many", "option 'steps' of the cell 'grpo,steps=many' cannot be 'many'"),
        ("--methods grpo --vary task places arithmetic", "the cells differ in 'task'"),
        ("--methods grpo --evaluate-on place", "unknown task 'place'"),
        ("--methods grpo --evaluate-on places places", "a task of --evaluate-on is given twice"),
        ("--methods grpo --evaluate-on places,dtype=auto", "sets 'dtype', which the comparison sets"),
        ("--seeds 0", "a comparison needs methods"),
        ("--methods grpo --beside gcpo:table9", "gcpo:table9"),
        ("--methods grpo --seed 3", "unknown option '--seed' (did you mean '--seeds'?)"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(options, words, capsys, tmp_path):
    assert words in refused(capsys, "compare", *options.split(), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_baseline_is_grpo_where_there_is_one(tmp_path):
    settings = read(CompareSettings, {"methods": ["gcpo_cd", "grpo"]})
    assert comparison(settings, {}, tmp_path).baseline == "grpo"
    assert comparison(read(CompareSettings, {"methods": ["gcpo_cd", "rloo"]}), {}, tmp_path).baseline == "gcpo_cd"


def test_tasks_of_the_evaluation_have_options_of_their_own(tmp_path):
    settings = read(CompareSettings, {"methods": ["grpo"], "evaluate_on": ["places", "arithmetic,temperature=0.5"]})
    given = {"temperature": 0.7, "eval_prompts": 9, "max_completion_length": 11}
    places, arithmetic = comparison(settings, given, tmp_path).targets
    assert (places.name, arithmetic.name) == ("places", "arithmetic,temperature=0.5")
    assert (places.options["temperature"], arithmetic.options["temperature"]) == (0.7, 0.5)
    assert places.options["prompts"] == arithmetic.options["prompts"] == 9


def test_models_that_cannot_be_told_apart_as_folders_are_refused():
    apart = cells(cells={"a": {"method": "grpo", "model": "x/y"}, "b": {"method": "grpo", "model": "../z"}})
    assert {model_label(model) for model in models(apart)} == {"z", "x-y"}
    with pytest.raises(CalibrantError, match="have the same name as a folder"):
        models(cells(cells={"a": {"method": "grpo", "model": "x/y"}, "b": {"method": "grpo", "model": "x-y"}}))
    assert model_label("..") == "model"


def test_a_run_directory_is_no_place_for_a_comparison(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(CalibrantError, match="holds a run or an analysis"):
        comparison(read(CompareSettings, {"methods": ["grpo"]}), {}, tmp_path)


def test_cells_of_a_file_need_a_method():
    with pytest.raises(CalibrantError, match="the cell 'mine' has no method"):
        cells(cells={"mine": {"alpha": 0.3}})
