"""AIME 2024 and 2025 (30 problems each), AMC 2023 (40) and Minerva (272; Lewkowycz et al., 2022): no training sets.

The training task of AIME 2024 is OlympiadBench (GCPO, appendix E.3); for the others it is our choice: the same for
AIME 2025, MATH for the rest.
"""

from calibrant.tasks.base import Task
from calibrant.tasks.maths import maths_task, parse_problem
from calibrant.tasks.sources import Hub, Source

AMC23_REVISION = "80815d37005feb82cd7f8fbc6901d5d3eff43057"


def contest(name: str, summary: str, at: Hub, train_task: str, *folders: str) -> Task:
    """A task with a test split alone; `folders` are further names of its data folder."""
    source = Source(
        hubs={"test": at},
        files={"test": ("test.jsonl", f"data/{at.split}-*.parquet", f"{at.split}-*.parquet")},
        schema="test.jsonl with problem (or question) and answer, or a solution that boxes it",
        url="https://github.com/QwenLM/Qwen2.5-Math, evaluation/data",
        parse=parse_problem,
        folders=folders,
    )
    summary = f"{summary}; trained on {train_task}"
    return maths_task(name, summary, source=source, max_completion_length=2048, train_task=train_task)


AIME24 = contest("aime24", "AIME 2024", Hub("HuggingFaceH4/aime_2024", "train"), "olympiadbench")
AIME25 = contest("aime25", "AIME 2025", Hub("math-ai/aime25", "test"), "olympiadbench")
AMC23 = contest("amc23", "AMC 2023", Hub("math-ai/amc23", "test", revision=AMC23_REVISION), "math500")
MINERVA = contest(
    "minerva", "university sciences", Hub("math-ai/minervamath", "test"), "math500", "minerva_math", "minervamath"
)
