"""The main figure of a run alone, for a README or a talk."""

from pathlib import Path

from calibrant.errors import CalibrantError
from calibrant.files import write_with
from calibrant.report import figures
from calibrant.report.reading import RunData, load_run
from calibrant.report.tables import comparisons

FORMATS = ("svg", "png")


def write_picture(run_dir: str | Path, path: str | Path) -> Path:
    """Saves the learning curve beside the evaluation before and after training.

    Args:
        run_dir: a run directory.
        path: the picture; its ending, `.svg` or `.png`, names the format.

    Returns:
        The path written.

    Raises:
        CalibrantError: this is no run directory, it holds nothing to draw, or the ending is another.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise CalibrantError(f"the picture '{path}' ends in '{path.suffix}'; give a name that ends in .svg or .png")
    panels = main_panels(load_run(run_dir))
    if not panels:
        raise CalibrantError(f"'{run_dir}' holds neither rewards nor evaluations yet; train first, then draw")
    widths = [1.5, 1.0][-len(panels) :]
    picture = figures.save(panels, (10.4, 3.6) if len(panels) > 1 else (6.4, 3.6), kind, widths)
    return write_with(path, lambda file: file.write_bytes(picture))


def main_panels(run: RunData) -> list[figures.Draw]:
    """The learning curve and the evaluation, whichever there is."""
    reward, rows = run.metric("reward"), comparisons(run)
    panels = [figures.curve(reward, "mean reward of a step")] if len(reward) else []
    return panels + ([figures.before_after(rows)] if rows else [])
