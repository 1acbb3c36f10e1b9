"""The main figure of a run as an image file, for a README or a talk."""

from pathlib import Path

from calibrant.errors import CalibrantError
from calibrant.files import write_with
from calibrant.report import figures
from calibrant.report.evaluations import comparisons
from calibrant.report.reading import load_run

FORMATS = ("svg", "png")


def write_picture(run_dir: str | Path, path: str | Path) -> Path:
    """Saves the learning curve and the evaluation before and after training, side by side, as `.svg` or `.png`."""
    path = Path(path)
    format = path.suffix.lower().removeprefix(".")
    if format not in FORMATS:
        raise CalibrantError(f"the picture '{path}' ends in '{path.suffix}'; give a name that ends in .svg or .png")
    run = load_run(run_dir)
    reward, rows = run.metric("reward"), comparisons(run.evaluation)
    panels = [figures.curve(reward, "mean reward of a step")] if len(reward) else []
    panels += [figures.before_after(rows)] if rows else []
    if not panels:
        raise CalibrantError(f"'{run_dir}' holds neither rewards nor evaluations yet; train first, then draw")
    widths = [1.5, 1.0][-len(panels) :]
    picture = figures.save_figure(panels, (10.4, 3.6) if len(panels) > 1 else (6.4, 3.6), format, widths)
    return write_with(path, lambda file: file.write_bytes(picture))
