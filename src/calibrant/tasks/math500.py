"""MATH (Hendrycks et al., 2021): its 7,500 training problems, and MATH-500 (Lightman et al., 2023) for testing."""

from calibrant.tasks.maths import maths_task, parse_problem
from calibrant.tasks.sources import Hub, Source

SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip

SOURCE = Source(
    hubs={
        "train": Hub("EleutherAI/hendrycks_math", "train", SUBJECTS),
        "test": Hub("HuggingFaceH4/MATH-500", "test"),
    },
    files={
        "train": ("train.jsonl", "train/*/*.json", "*/train-*.parquet", "train-*.parquet"),
        "test": ("test.jsonl", "math500.jsonl", "math500.jsonl.gz", "test-*.parquet"),
    },
    schema=(
        "for training the folder tree of MATH or train.jsonl, with problem and solution; "
        "for testing the test.jsonl of PRM800K, with problem and answer"
    ),
    url="https://github.com/hendrycks/math and https://github.com/openai/prm800k",
    parse=parse_problem,
    folders=("MATH", "math"),
)
TASK = maths_task(
    "math500",
    "competition problems: MATH, and MATH-500 of it for testing",
    source=SOURCE,
    max_completion_length=2048,
)
