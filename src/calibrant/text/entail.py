"""Whether one answer entails another: a model's judgement, each distinct pair judged once, many in a forward pass."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.signals.clusters import clusters_by
from calibrant.text.classifier import check_sizes, label_columns, load_classifier, tokens_a_pair

Pair = tuple[str | None, str | None]
Row = tuple[float, float, float]

SAME: Row = (0.0, 0.0, 1.0)
"""Contradiction, neutral, entailment: of equal texts, without asking a model."""

NOTHING: Row = (torch.nan, torch.nan, torch.nan)
"""Of an empty text, which entails nothing and which nothing entails."""

CPU_PADDING = 32
"""Tokens of padding that cost a CPU about as much as another forward pass. Elsewhere a pass costs more than padding."""


class EntailmentJudge:
    """Judges premise and hypothesis with a sequence-classification model trained on natural language inference.

    The paper's judge is `roberta-large-mnli` (GCPO, appendix E.3). Which of a model's labels is which is read from
    its `id2label`, whatever their order. A head with two labels, entailment and not, has no contradiction: not to
    entail is neutral there (c). Three labels without names are taken in the order of `roberta-large-mnli`
    (contradiction, neutral, entailment), with a warning.

    Equal texts entail each other with probability 1, and empty texts (of white space alone) entail nothing and are
    entailed by nothing: neither is asked of the model. Judgements are kept, by premise and hypothesis, from call to
    call. A judgement depends on the pairs in its batch by rounding (3e-6 seen in float32): with `cache_size=0` it
    depends on the arguments of its call alone, not on what was judged before.

    Args:
        model: a local folder in transformers format, or a hub name; weights from safetensors only.
        device: a torch device; an accelerator if there is one, else the CPU, when None.
        dtype: a torch floating type or its name, "bfloat16" say; float32 when None, whatever the weights were saved
            in: thresholds are compared with what it rounds.
        batch_size: the most pairs a forward pass; they are sorted by length before, and on a CPU a pass is smaller
            where that saves padding.
        max_length: tokens a pair, from the longer of whose texts is cut what is too much; the largest number that the
            model reads when None. Of a text alone, more than that is never read.
        cache_size: judgements kept; the one not used for longest goes first.
        trust_remote_code: whether to run code that comes with the model.

    Attributes:
        name: the model, as given.
        device: where it computes.
        max_length: tokens a pair; None where neither the model nor its tokenizer has a limit.
        pairs_judged: how many pairs the model has been asked for.

    Raises:
        CalibrantError: the model cannot be found or read, has no trained classifier, or has labels that are not
            those of entailment; or a size is not a positive integer.
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
        check_sizes(batch_size=(batch_size, 1), cache_size=(cache_size, 0))
        self.name = model
        self.batch_size, self.cache_size = batch_size, cache_size
        self.tokenizer, self.model = load_classifier(model, device, dtype or torch.float32, trust_remote_code)
        self.device: torch.device = self.model.device
        self.columns = label_columns(self.model.config.id2label, model)
        self.max_length = tokens_a_pair(self.tokenizer, self.model, max_length)
        self.pairs_judged = 0
        self._cache: OrderedDict[Pair, Row] = OrderedDict()

    def __repr__(self) -> str:
        return f"EntailmentJudge({self.name!r}, device='{self.device}', dtype={self.model.dtype})"

    def probabilities(self, premises: Sequence[str], hypotheses: Sequence[str]) -> Tensor:
        """Probabilities of contradiction, neutral and entailment, in this order.

        Args:
            premises: B texts.
            hypotheses: B texts.

        Returns:
            `[B, 3]`, float32 on the CPU, in [0, 1], rows of sum 1; NaN where a text is empty.

        Raises:
            CalibrantError: not as many premises as hypotheses, or not texts.
        """
        if len(premises) != len(hypotheses):
            raise CalibrantError(f"entailment: got {len(premises)} premises but {len(hypotheses)} hypotheses")
        sides = _texts([premises, hypotheses], None)
        return self._judge(list(zip(*sides, strict=True)), {})

    def matrix(self, groups: Sequence[Sequence[str]], questions: Sequence[str] | None = None) -> Tensor:
        """Probabilities for all pairs of each group, as `signals.kernel_language_entropy` reads them.

        Args:
            groups: N sequences of G answers.
            questions: N texts, each put before the answers of its group, as the code of Kuhn, Gal and Farquhar does
                (a); a question does not fill an empty answer.

        Returns:
            `[N, G, G, 3]`, float32 on the CPU: premise i and hypothesis j; contradiction, neutral, entailment. On the
            diagonal, entailment is 1. Rows and columns of empty answers are NaN, diagonal included.

        Raises:
            CalibrantError: groups differ in length, hold other things than texts, or are not as many as questions.
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
        """Cluster numbers of the answers of each group, as `clustering.entailment_clusters` has them of the matrix.

        Only the pairs that the rule needs are judged, and those of all groups together: for "greedy", step j asks,
        in one list, for the first member of each cluster of each group and answer j of that group. The steps are the
        rule's own, so that the result is that of one pair at a time.

        An answer equal to a first member joins it unasked. An answer equal to one that only joined a cluster is judged
        against the clusters opened in between, as the rule has it, and may join one of these.

        Args:
            groups: N sequences of G answers. Each empty one is a cluster of its own.
            rule: a name of `clustering.RULES`, or a relation and an assignment.
            threshold: the smallest probability of entailment that joins, in [0, 1]; read by "greedy".
            questions: as of `matrix`.
            where: `[N, G]`, boolean; rollouts out of it neither open nor join a cluster.

        Returns:
            `[N, G]`, int64 on the CPU, 0, 1, ... in order of first appearance; -1 for rollouts out of `where`.

        Raises:
            CalibrantError: as of `matrix`; or the rule is unknown, the threshold out of [0, 1], or where is not
                `[N, G]`.
        """
        texts = _texts(groups, questions)
        mask = _mask(where, len(texts), len(texts[0]) if texts else 0)
        known: dict[Pair, Row] = {}

        def ask(n: Tensor, i: Tensor, j: Tensor) -> Tensor:
            triples = zip(n.tolist(), i.tolist(), j.tolist(), strict=True)
            return self._judge([(texts[a][b], texts[a][c]) for a, b, c in triples], known)

        return clusters_by(ask, mask, rule, threshold, _keys(texts, mask))

    def _judge(self, pairs: Sequence[Pair], known: dict[Pair, Row]) -> Tensor:
        """Rows of pairs `[B, 3]`; `known` holds those of this call, which the cache may have dropped."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in known]
        known.update((pair, row) for pair in new if (row := _certain(pair) or self._recall(pair)) is not None)
        asked = [pair for pair in new if pair not in known]
        rows = dict(zip(asked, self._ask_model(asked), strict=True))
        known.update(rows)
        self._remember(rows)
        return torch.tensor([known[pair] for pair in pairs], dtype=torch.float32).reshape(-1, 3)

    def _recall(self, pair: Pair) -> Row | None:
        row = self._cache.get(pair)
        if row is not None:
            self._cache.move_to_end(pair)
        return row

    def _remember(self, rows: Mapping[Pair, Row]) -> None:
        self._cache.update(rows)
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)

    def _ask_model(self, pairs: Sequence[Any]) -> list[Row]:
        """Judges pairs of texts, those of like length together, the longest first."""
        if not pairs:
            return []
        cut, length = self._measured(dict.fromkeys(text for pair in pairs for text in pair))
        tokens = [sum(length[text] for text in pair) for pair in pairs]
        padding = CPU_PADDING if self.device.type == "cpu" else None
        batches = _batches([min(n, self.max_length or n) for n in tokens], self.batch_size, padding)
        sorted_rows = torch.cat([self._forward([[cut[text] for text in pairs[k]] for k in batch]) for batch in batches])
        rows = torch.empty_like(sorted_rows, device="cpu")
        rows[[k for batch in batches for k in batch]] = sorted_rows.cpu()
        self.pairs_judged += len(pairs)
        return [tuple(row) for row in rows.tolist()]

    def _measured(self, texts: Iterable[str]) -> tuple[dict[str, str], dict[str, int]]:
        """Each text without what no pair of it could hold, which to cut off pair by pair is slow, and its tokens."""
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
        batch = self.tokenizer(premises, hypotheses, padding=True, return_tensors="pt", **options)
        p = self.model(**batch.to(self.device)).logits.float().softmax(-1)
        return torch.cat([p, torch.zeros_like(p[:, :1])], dim=1)[:, self.columns]


def _batches(lengths: Sequence[int], size: int, padding: int | None) -> list[list[int]]:
    """Indices from the longest to the shortest, up to `size` a batch, with up to `padding` tokens of padding in it."""
    batches: list[list[int]] = []
    longest = padded = 0
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        padded += longest - lengths[k]
        if not batches or len(batches[-1]) == size or (padding is not None and padded > padding):
            batches.append([])
            longest, padded = lengths[k], 0
        batches[-1].append(k)
    return batches


def _certain(pair: Pair) -> Row | None:
    """The judgement that needs no model, if there is one."""
    if None in pair:
        return NOTHING
    return SAME if pair[0] == pair[1] else None


def _texts(groups: Sequence[Sequence[str]], questions: Sequence[str] | None) -> list[list[str | None]]:
    """Answers after their question, None for empty ones."""
    if isinstance(groups, str) or any(isinstance(group, str) for group in groups):
        raise CalibrantError("entailment: expected N lists of G texts, got a flat list; split it into groups")
    lengths = sorted({len(group) for group in groups})
    if len(lengths) > 1:
        raise CalibrantError(f"entailment: every group needs the same number of texts, got groups of {lengths}")
    others = [type(text).__name__ for group in groups for text in group if not isinstance(text, str)]
    if others:
        raise CalibrantError(f"entailment: expected texts, got a {others[0]}; give '' where there is none")
    if questions is not None and (isinstance(questions, str) or len(questions) != len(groups)):
        got = "one text" if isinstance(questions, str) else len(questions)
        raise CalibrantError(f"entailment: expected one question a group, {len(groups)}, got {got}")
    starts = [""] * len(groups) if questions is None else [f"{question} " for question in questions]
    return [[start + a if a.strip() else None for a in group] for start, group in zip(starts, groups, strict=True)]


def _mask(where: Tensor | None, groups: int, size: int) -> Tensor:
    if where is None:
        return torch.ones(groups, size, dtype=torch.bool)
    if not isinstance(where, Tensor) or where.dtype != torch.bool or where.shape != (groups, size):
        got = f"{where.dtype} {list(where.shape)}" if isinstance(where, Tensor) else f"a {type(where).__name__}"
        raise CalibrantError(f"entailment: where has to be a boolean mask [{groups}, {size}], got {got}")
    return where.cpu()


def _keys(texts: list[list[str | None]], mask: Tensor) -> Tensor:
    """Numbers `[N, G]`, equal where texts of a group are; empty ones are not equal to one another."""
    keys = [[i if text is None else group.index(text) for i, text in enumerate(group)] for group in texts]
    return torch.tensor(keys, dtype=torch.int64).reshape(mask.shape)
