"""Run by torchrun in a test: scores that two processes share out, against those of a process that computes all.

Usage: two_scoring.py FOLDER
"""

import sys
from dataclasses import replace

import torch
from accelerate import Accelerator
from builders_entail import save, some_groups

from calibrant.errors import CalibrantError
from calibrant.methods import METHODS
from calibrant.scorer import Scorer
from calibrant.text.embed import Embedder
from calibrant.text.entail import EntailmentJudge
from calibrant.text.inputs import Readers
from calibrant.trl.division import divided, gathered

torch.set_num_threads(1)
SIZE = 6
TO_THE_BIT = ("gcpo_cd", "gcpo_bot", "ha_dw", "capo")
BY_ENTAILMENT = ("gcpo_bot", "grpo_se", "grpo_kle")


def made(count: int, seed: int) -> tuple[list[str], torch.Tensor, dict[str, torch.Tensor]]:
    """Completions, rewards and what a model would have said."""
    texts = [text for group in some_groups(count, SIZE, seed) for text in group]
    generator = torch.Generator().manual_seed(seed)
    rewards = 2.0 * torch.randint(2, (count, SIZE), generator=generator)
    logps = {name: -torch.rand(count, SIZE, generator=generator) for name in ("mean_logprob", "ref_mean_logprob")}
    return texts, rewards, logps


def both(method: str, alone: Readers, shared: Readers) -> None:
    """Three batches, of more groups, an odd number and fewer than processes; a state goes from one to the next."""
    scorers, states = [Scorer(METHODS[method], {}, readers) for readers in (alone, shared)], [{}, {}]
    for seed, count in enumerate((8, 3, 1)):
        texts, rewards, logps = made(count, seed)
        one, two = (
            scorer(texts, rewards, answers=texts, given=logps, state=state)
            for scorer, state in zip(scorers, states, strict=True)
        )
        states = [dict(one.outcome.state or {}), dict(two.outcome.state or {})]
        assert one.groups.inputs.keys() == two.groups.inputs.keys()
        if alone.entail is None:
            assert all(torch.equal(x, two.groups.inputs[name]) for name, x in one.groups.inputs.items())
            assert torch.equal(one.outcome.weights, two.outcome.weights)
            assert torch.equal(one.outcome.advantages, two.outcome.advantages)
            assert all(torch.equal(x, states[1][name]) for name, x in states[0].items())
        else:
            torch.testing.assert_close(one.groups.inputs, two.groups.inputs, rtol=0, atol=1e-5, equal_nan=True)
            torch.testing.assert_close(one.outcome.weights, two.outcome.weights, rtol=1e-4, atol=1e-5)
    assert method != "ha_dw" or states[0]


def halves_of_texts(embedder: Embedder, shared: Readers, accelerator: Accelerator) -> None:
    """Counts the texts that reach the embedding model."""
    texts, encode, seen = made(20, 9)[0] + [f"the answer {i}" for i in range(30)], embedder.model.encode, []
    embedder.model.encode = lambda batch, **options: seen.extend(batch) or encode(batch, **options)
    vectors = shared.embed(texts)
    del embedder.model.encode
    assert torch.equal(vectors, embedder(texts))
    every = gathered(lambda: seen, accelerator)
    distinct = sorted(set(texts))
    assert sorted(every[0] + every[1]) == distinct, "a text was embedded twice, or not at all"
    assert abs(len(every[0]) - len(every[1])) <= embedder.batch_size < len(distinct) / 4


def halves_of_pairs(judges: list[EntailmentJudge], accelerator: Accelerator) -> None:
    """Counts the pairs that reach the entailment model."""
    groups = [[f"{text} {i}" for text in group] for i, group in enumerate(some_groups(20, SIZE, 5))]
    shared = divided(Readers(entail=judges[1].matrix), accelerator)
    counts = []
    for judge, matrix in zip(judges, (judges[0].matrix, shared.entail), strict=True):
        before = judge.pairs_judged
        matrix(groups)
        counts.append(judge.pairs_judged - before)
    assert 0.3 * counts[0] < counts[1] < 0.7 * counts[0], counts


def errors_of_one(embedder: Embedder, accelerator: Accelerator) -> None:
    """An error on one process is the same sentence on both, and both go on."""

    def failing(groups: object) -> torch.Tensor:
        if accelerator.process_index == 1:
            raise CalibrantError("the cluster function 'failing' raised KeyError: 'x'; mend it")
        return torch.zeros(len(groups), SIZE, dtype=torch.int64)

    def damaged(texts: object, **_: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    if accelerator.process_index == 0:
        embedder.model.encode = damaged
    shared = divided(Readers(embedder, failing), accelerator)
    texts, said = some_groups(4, SIZE), []
    for read, given in ((shared.cluster, texts), (shared.embed, [text for group in texts for text in group])):
        try:
            read(given)
        except CalibrantError as error:
            said.append(str(error))
    embedder.model.__dict__.pop("encode", None)
    wanted = ["the cluster function 'failing' raised KeyError: 'x'; mend it"]
    wanted.append("process 0 failed: RuntimeError: out of memory")
    assert said == wanted, said


def main() -> None:
    """Runs all checks; an assertion that fails ends the process."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    if accelerator.is_main_process:
        save(sys.argv[1])
    accelerator.wait_for_everyone()
    embedder = Embedder(batch_size=4)
    judges = [EntailmentJudge(sys.argv[1], device="cpu") for _ in range(2)]
    alone = Readers(embedder)
    for method in TO_THE_BIT:
        both(method, alone, divided(alone, accelerator))
    pairs = [replace(alone, cluster=judge.clusters, entail=judge.matrix) for judge in judges]
    for method in BY_ENTAILMENT:
        both(method, pairs[0], divided(pairs[1], accelerator))
    halves_of_texts(embedder, divided(alone, accelerator), accelerator)
    halves_of_pairs([EntailmentJudge(sys.argv[1], device="cpu") for _ in range(2)], accelerator)
    errors_of_one(embedder, accelerator)
    print("all equal", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    main()
