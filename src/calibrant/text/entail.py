"""Entailment probabilities of answer pairs from a classifier; distinct pairs once, in batches of similar length."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from calibrant.checks import check_shapes
from calibrant.errors import CalibrantError
from calibrant.signals.clusters import clusters_by
from calibrant.statistics.counted import check_count
from calibrant.text.classifier import label_columns, load_classifier, maximum_length
from calibrant.text.flat_pairs import can_be_flat, flat_logits

Pair = tuple[str | None, str | None]
Probabilities = tuple[float, float, float]  # contradiction, neutral, entailment
EQUAL_TEXTS: Probabilities = (0.0, 0.0, 1.0)
EMPTY_TEXT: Probabilities = (torch.nan, torch.nan, torch.nan)

CPU_PADDING = 32
"""Tokens of padding that cost a CPU about as much as another forward pass; elsewhere padding is cheaper."""


class EntailmentJudge:
    """Classifies pairs of premise and hypothesis with a model trained on natural language inference.

    The paper uses `roberta-large-mnli` (GCPO, appendix E.3). Labels are read from the model's `id2label`, in any
    order. With two labels, entailment and not, the second is neutral and contradiction is 0 (c). Three unnamed labels
    are read in the order of `roberta-large-mnli` (contradiction, neutral, entailment), with a warning.

    The model is not run for equal texts (entailment 1) and for empty ones, of white space alone (NaN). Results are
    cached across calls. They depend on the pairs in their batch by rounding (3e-6 in float32): with `cache_size=0`
    they depend on the arguments of the call alone.

    Args:
        model: a local folder in transformers format, or a hub name; weights from safetensors only.
        device: when None the accelerator, else the CPU.
        dtype: a torch floating type or its name, such as "bfloat16"; float32 when None, whatever the checkpoint has,
            because lower precision shifts results across the threshold.
        batch_size: maximum pairs per forward pass, sorted by length. On a CPU pairs are computed without padding, or
            in smaller batches where that saves padding, if the model is none of `flat_pairs.FAMILIES`.
        max_length: maximum tokens per pair; the longer text is truncated. The maximum of the model and its tokenizer
            when None.
        cache_size: maximum number of cached results; the least recently used is dropped first.

    Attributes:
        pairs_judged: number of pairs passed through the model.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        batch_size: int = 64,
        max_length: int | None = None,
        cache_size: int = 2**16,
        trust_remote_code: bool = False,
    ):
        check_count("entailment", batch_size=batch_size)
        check_count("entailment", 0, cache_size=cache_size)
        self.name = model
        self.batch_size, self.cache_size = batch_size, cache_size
        self.tokenizer, self.model = load_classifier(model, device, dtype or torch.float32, trust_remote_code)
        self.device: torch.device = self.model.device
        self.columns = label_columns(self.model.config.id2label, model)
        self.max_length = maximum_length(self.tokenizer, self.model, max_length)
        self.flat = self.device.type == "cpu" and can_be_flat(self.model)
        self.pairs_judged = 0
        self._cache: OrderedDict[Pair, Probabilities] = OrderedDict()

    def __repr__(self) -> str:
        return f"EntailmentJudge({self.name!r}, device='{self.device}', dtype={self.model.dtype})"

    def probabilities(self, premises: Sequence[str], hypotheses: Sequence[str]) -> Tensor:
        """Probabilities of contradiction, neutral and entailment for B pairs, `[B, 3]`; NaN where a text is empty."""
        if len(premises) != len(hypotheses):
            raise CalibrantError(f"entailment: got {len(premises)} premises but {len(hypotheses)} hypotheses")
        sides = _texts([premises, hypotheses], None)
        return self._judge(list(zip(*sides, strict=True)), {})

    def matrix(self, groups: Sequence[Sequence[str]], questions: Sequence[str] | None = None) -> Tensor:
        """Probabilities for all pairs of each group, the input of `signals.kernel_language_entropy`.

        `[N, G, G, 3]` for N groups of G answers: premise i, hypothesis j; contradiction, neutral, entailment.
        Entailment is 1 on the diagonal. Rows and columns of empty answers are NaN, diagonal included.

        The question of a group, where given, is prepended to its answers, as in the code of Kuhn, Gal and Farquhar
        (a); an empty answer stays empty.
        """
        texts = _texts(groups, questions)
        size = len(texts[0]) if texts else 0
        rows = self._judge([(premise, hypothesis) for group in texts for premise in group for hypothesis in group], {})
        return rows.reshape(len(texts), size, size, 3)

    def clusters(
        self,
        groups: Sequence[Sequence[str]],
        rule: str | tuple[str, str] = "greedy",
        threshold: float = 0.35,
        questions: Sequence[str] | None = None,
        where: Tensor | None = None,
    ) -> Tensor:
        """Clusters of each group, equal to `signals.clusters.entailment_clusters` of the matrix, from fewer pairs.

        Only the pairs that the rule needs are classified, for all groups together: with "greedy", step j compares
        answer j of each group with the first member of each cluster of that group, in one batch.

        An answer equal to a first member joins its cluster without the model. An answer equal to a later member is
        compared with the clusters opened in between, as the rule says, and may join one of these.

        Args:
            groups: N sequences of G answers. Each empty one is a cluster of its own.
            rule: a name of `signals.clusters.RULES`, or a relation and an assignment.
            threshold: smallest probability of entailment for joining, in [0, 1]; for "greedy".
            questions: as in `matrix`.
            where: `[N, G]`; masked rollouts neither open nor join a cluster, and get -1.
        """
        texts = _texts(groups, questions)
        keys = _keys(texts)
        if where is not None:
            check_shapes("entailment", answers=(keys, "N G"), where=(where, "N G"))
        mask = torch.ones_like(keys, dtype=torch.bool) if where is None else where.cpu()
        results: dict[Pair, Probabilities] = {}

        def compare(n: Tensor, i: Tensor, j: Tensor) -> Tensor:
            triples = zip(n.tolist(), i.tolist(), j.tolist(), strict=True)
            return self._judge([(texts[a][b], texts[a][c]) for a, b, c in triples], results)

        return clusters_by(compare, mask, rule, threshold, keys)

    def _judge(self, pairs: Sequence[Pair], results: dict[Pair, Probabilities]) -> Tensor:
        """Probabilities of pairs `[B, 3]`; `results` holds those of this call, which the cache may have dropped."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in results]
        results.update((pair, row) for pair in new if (row := self._without_model(pair)) is not None)
        missing = [(pair[0] or "", pair[1] or "") for pair in new if pair not in results]
        rows: dict[Pair, Probabilities] = dict(zip(missing, self._run_model(missing), strict=True))
        results.update(rows)
        self._cache.update(rows)
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return torch.tensor([results[pair] for pair in pairs], dtype=torch.float32).reshape(-1, 3)

    def _without_model(self, pair: Pair) -> Probabilities | None:
        if None in pair:
            return EMPTY_TEXT
        if pair[0] == pair[1]:
            return EQUAL_TEXTS
        if pair in self._cache:
            self._cache.move_to_end(pair)
        return self._cache.get(pair)

    def _run_model(self, pairs: Sequence[tuple[str, str]]) -> list[Probabilities]:
        """Probabilities of pairs, in batches of similar length, the longest first."""
        if not pairs:
            return []
        cut, length = self._truncated(dict.fromkeys(text for pair in pairs for text in pair))
        tokens = [sum(length[text] for text in pair) for pair in pairs]
        padding = CPU_PADDING if self.device.type == "cpu" and not self.flat else None
        batches = _batches([min(n, self.max_length or n) for n in tokens], self.batch_size, padding)
        sorted_rows = torch.cat([self._forward([[cut[text] for text in pairs[k]] for k in batch]) for batch in batches])
        rows = torch.empty_like(sorted_rows, device="cpu")
        rows[[k for batch in batches for k in batch]] = sorted_rows.cpu()
        self.pairs_judged += len(pairs)
        return [tuple(row) for row in rows.tolist()]

    def _truncated(self, texts: Iterable[str]) -> tuple[dict[str, str], dict[str, int]]:
        """Each text cut at `max_length` tokens, which is faster than pair by pair, and its number of tokens."""
        names = list(texts)
        fast = self.tokenizer.is_fast
        options = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        encoded = self.tokenizer(names, add_special_tokens=False, return_offsets_mapping=fast, **options)
        length = {text: len(ids) for text, ids in zip(names, encoded["input_ids"], strict=True)}
        cut = {text: text for text in names}
        for text, spans in zip(names, encoded["offset_mapping"] if fast else [], strict=fast):
            if length[text] == self.max_length:
                cut[text] = text[spans[0][0] : spans[-1][1]]
        return cut, length

    @torch.inference_mode()
    def _forward(self, pairs: list[list[str]]) -> Tensor:
        premises, hypotheses = ([pair[side] for pair in pairs] for side in (0, 1))
        options = {"truncation": "longest_first", "max_length": self.max_length} if self.max_length else {}
        if self.flat:
            logits = flat_logits(self.model, self.tokenizer(premises, hypotheses, **options))
        else:
            batch = self.tokenizer(premises, hypotheses, padding=True, return_tensors="pt", **options)
            logits = self.model(**batch.to(self.device)).logits
        p = logits.float().softmax(-1)
        return torch.cat([p, torch.zeros_like(p[:, :1])], dim=1)[:, self.columns]


def _batches(lengths: Sequence[int], size: int, padding: int | None) -> list[list[int]]:
    """Indices from the longest to the shortest, at most `size` and `padding` tokens of padding per batch."""
    batches: list[list[int]] = []
    longest = padded = 0
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        padded += longest - lengths[k]
        if not batches or len(batches[-1]) == size or (padding is not None and padded > padding):
            batches.append([])
            longest, padded = lengths[k], 0
        batches[-1].append(k)
    return batches


def _texts(groups: Sequence[Sequence[str]], questions: Sequence[str] | None) -> list[list[str | None]]:
    """Answers with their question in front; None for empty answers."""
    if isinstance(groups, str) or any(isinstance(group, str) for group in groups):
        raise CalibrantError("entailment: expected N lists of G texts, got a flat list; split it into groups")
    lengths = sorted({len(group) for group in groups})
    if len(lengths) > 1:
        raise CalibrantError(f"entailment: every group needs the same number of texts, got groups of {lengths}")
    others = [type(text).__name__ for group in groups for text in group if not isinstance(text, str)]
    if others:
        raise CalibrantError(f"entailment: expected texts, got a {others[0]}; give '' for no answer")
    if questions is not None and (isinstance(questions, str) or len(questions) != len(groups)):
        got = "one text" if isinstance(questions, str) else len(questions)
        raise CalibrantError(f"entailment: expected one question per group, {len(groups)}, got {got}")
    starts = [""] * len(groups) if questions is None else [f"{question} " for question in questions]
    return [[start + a if a.strip() else None for a in group] for start, group in zip(starts, groups, strict=True)]


def _keys(texts: list[list[str | None]]) -> Tensor:
    """`[N, G]`, equal for equal texts of a group; empty texts are unequal."""
    keys = [[i if text is None else group.index(text) for i, text in enumerate(group)] for group in texts]
    return torch.tensor(keys, dtype=torch.int64).reshape(len(texts), -1 if texts else 0)
