"""The entailment judge against one pair at a time: on a small network made here, and on a real one where there is one.

    CALIBRANT_NLI=FOLDER pytest tests/test_entail.py

repeats the comparison with the model in FOLDER.
"""

import itertools
import os
import random
import warnings
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from calibrant import hub
from calibrant.errors import CalibrantError
from calibrant.signals import kernel_language_entropy
from calibrant.signals.clusters import RULES, entailment_clusters, greedy_clusters
from calibrant.text import entail
from calibrant.text.entail import EntailmentJudge

ANSWERS = [
    "Paris",
    "paris, france",
    "the city of Paris",
    "It is the city of Paris, in France.",
    "Lyon",
    "Lyon is the capital",
    "the capital is not Paris",
    "I do not know",
    "a large city",
    "a large city in the north of France",
    "the euro",
    "Two million people live there.",
    "about 2 million",
    "Germany, Belgium and Spain",
    "Spain and Belgium",
]
LABELS = {0: "contradiction", 1: "neutral", 2: "entailment"}


def tokenizer(folder):
    """Word pieces: the words of the answers in small letters, and all letters for what else comes."""
    found = pre_tokenizers.BertPreTokenizer()
    known = {word for answer in ANSWERS for word, _ in found.pre_tokenize_str(answer.lower())}
    letters = sorted({letter for word in known for letter in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *sorted(known)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    words = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), found
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, words.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return words.get_vocab_size()


def save(folder, labels=LABELS, order=None, **options):
    """A network with random weights, large enough for probabilities of all sizes; `order` permutes its head."""
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config |= {"vocab_size": tokenizer(folder), "max_position_embeddings": 64, "initializer_range": 0.2} | options
    torch.manual_seed(3)
    network = BertForSequenceClassification(BertConfig(**config, id2label=labels))
    with torch.no_grad():
        head = network.classifier.weight
        head.mul_(4)
        if order is not None:
            head.copy_(head[order].clone())
    network.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("nli"))


@pytest.fixture
def judge(folder):
    return EntailmentJudge(folder, device="cpu")


@pytest.fixture(scope="module", params=["made here", "CALIBRANT_NLI"])
def any_folder(request, folder):
    if request.param == "made here":
        return folder
    if request.param not in os.environ:
        pytest.skip("CALIBRANT_NLI names no folder")
    return os.environ[request.param]


def some_groups(count, size, seed=0):
    """Groups with repeated and empty answers."""
    choose = random.Random(seed)
    pools = (choose.choices([*ANSWERS, "", " "], k=choose.randint(1, size)) for _ in range(count))
    return [choose.choices(pool, k=size) for pool in pools]


def one_pair(folder):
    """What the network says of one pair alone: a function, and the list of the pairs that it was asked for."""
    words = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    label = {name.lower(): index for index, name in network.config.id2label.items()}
    answers = {}

    @torch.no_grad()
    def ask(premise, hypothesis):
        if (premise, hypothesis) not in answers:
            encoded = words(premise, hypothesis, return_tensors="pt")
            p = network(**encoded).logits[0].softmax(-1)
            answers[premise, hypothesis] = [p[label[name]].item() for name in LABELS.values()]
        return answers[premise, hypothesis]

    return ask, answers


def greedy(group, ask, threshold=0.35):
    """The paper's rule, one answer and one first member at a time."""
    first, ids = [], []
    for answer in group:
        p = [-1.0 if not (r.strip() and answer.strip()) else 1.0 if r == answer else ask(r, answer)[2] for r in first]
        best = max(range(len(first)), key=lambda k: p[k]) if first else None
        if best is not None and p[best] >= threshold:
            ids.append(best)
        else:
            ids.append(len(first))
            first.append(answer)
    return ids


def related(a, b, ask, rule):
    if not (a.strip() and b.strip()):
        return False
    there, back = ((0, 0, 1) if x == y else ask(x, y) for x, y in [(a, b), (b, a)])
    labels = [max(range(3), key=lambda k, p=p: p[k]) for p in (there, back)]
    return labels == [2, 2] if rule == "strict" else 0 not in labels and labels != [1, 1]


def first_match(group, ask, rule):
    first, ids = [], []
    for answer in group:
        found = next((k for k, r in enumerate(first) if related(r, answer, ask, rule)), len(first))
        if found == len(first):
            first.append(answer)
        ids.append(found)
    return ids


def last_seed(group, ask, rule):
    ids, number = [None] * len(group), 0
    for i, seed in enumerate(group):
        if ids[i] is None:
            ids[i] = number
            for j in range(i + 1, len(group)):
                if related(seed, group[j], ask, rule):
                    ids[j] = number
            number += 1
    return ids


def components(group, ask, rule):
    ids, number = [None] * len(group), 0
    for i in range(len(group)):
        if ids[i] is not None:
            continue
        found = [i]
        while found:
            k = found.pop()
            ids[k] = number
            found += [j for j in range(len(group)) if ids[j] is None and related(group[k], group[j], ask, rule)]
        number += 1
    return ids


LOOPS = {"best": lambda group, ask, _: greedy(group, ask), "first": first_match, "last": last_seed}
LOOPS["components"] = components


def test_200_groups_are_one_pair_at_a_time(any_folder):
    groups = some_groups(200, 8)
    judge = EntailmentJudge(any_folder, device="cpu", batch_size=17)
    ask, answers = one_pair(any_folder)
    expected = [greedy(group, ask) for group in groups]
    assert judge.clusters(groups).tolist() == expected
    assert max(map(max, expected)) >= 4
    p = torch.tensor([row[2] for row in answers.values()])
    assert p.min() < 0.1
    assert p.max() > 0.8
    assert judge.pairs_judged <= len(answers)
    judged = judge.probabilities(*zip(*answers, strict=True))
    torch.testing.assert_close(judged, torch.tensor(list(answers.values())), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_one_pair_at_a_time(any_folder, rule):
    groups = some_groups(60, 7, seed=1)
    judge = EntailmentJudge(any_folder, device="cpu")
    ask, _ = one_pair(any_folder)
    relation, assignment = RULES[rule]
    expected = [LOOPS[assignment](group, ask, relation) for group in groups]
    assert judge.clusters(groups, rule).tolist() == expected
    assert judge.clusters(groups, (relation, assignment)).tolist() == expected
    everything = EntailmentJudge(any_folder, device="cpu")
    everything.matrix(groups)
    assert judge.pairs_judged < everything.pairs_judged


def test_the_rules_differ(judge):
    groups = some_groups(60, 7, seed=1)
    results = [judge.clusters(groups, rule).tolist() for rule in RULES]
    assert all(a != b for a, b in itertools.combinations(results, 2))


@pytest.mark.parametrize("rule", RULES)
def test_clusters_are_those_of_the_matrix(judge, rule):
    groups = some_groups(100, 8, seed=2)
    where = torch.rand(100, 8, generator=torch.Generator().manual_seed(0)) > 0.2
    for questions in (None, [f"Which city, {i}?" for i in range(100)]):
        p = judge.matrix(groups, questions)
        for threshold in (0.0, 0.35, 0.9, 1.0):
            expected = entailment_clusters(p, rule, where, threshold=threshold)
            assert torch.equal(judge.clusters(groups, rule, threshold, questions, where), expected)


def test_only_the_pairs_needed_are_asked_each_once_and_many_at_a_time(folder, monkeypatch):
    groups = some_groups(64, 8, seed=4)
    judge = EntailmentJudge(folder, device="cpu", batch_size=4096)
    calls, ask_model = [], judge._run_model
    monkeypatch.setattr(judge, "_run_model", lambda pairs: calls.append(list(pairs)) or ask_model(pairs))
    judge.clusters(groups)
    asked = [pair for call in calls for pair in call]
    ask, _ = one_pair(folder)
    needed = set()
    for group in groups:
        for j, answer in enumerate(group):
            ids = greedy(group[:j], ask)
            first = [group[ids.index(k)] for k in range(max(ids, default=-1) + 1)]
            if answer.strip() and answer not in first:
                needed |= {(member, answer) for member in first if member.strip()}
    assert len(asked) == len(set(asked)) == judge.pairs_judged
    assert set(asked) == needed
    assert len(calls) <= 8


def count_forwards(judge):
    rows = []
    judge.model.register_forward_pre_hook(lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    return rows


def test_judged_once_and_kept(judge):
    rows = count_forwards(judge)
    first = judge.matrix([["Paris", "Lyon", "Paris", ""], ["Lyon", "Paris", "Lyon", "Lyon"]])
    assert rows == [2]
    assert torch.equal(judge.matrix([["Paris", "Lyon", "Paris", ""]]), first[:1]) or first.isnan().any()
    judge.clusters([["Lyon", "Paris", "Lyon"]])
    assert judge.probabilities(["Paris"] * 5, ["Lyon"] * 5).unique(dim=0).shape == (1, 3)
    assert rows == [2]
    judge.probabilities(["Paris"], ["the euro"])
    assert rows == [2, 1]
    assert judge.pairs_judged == 3


def test_the_cache_is_bounded_and_drops_what_was_not_used_for_longest(folder):
    judge = EntailmentJudge(folder, device="cpu", cache_size=2)
    rows = count_forwards(judge)
    for other in ("Lyon", "the euro", "Lyon", "about 2 million", "Lyon"):  # the euro goes, Lyon was used since
        judge.probabilities(["Paris"], [other])
    assert rows == [1, 1, 1]
    judge.probabilities(["Paris"], ["the euro"])
    assert rows == [1, 1, 1, 1]


@pytest.mark.parametrize("cache_size", [0, 1, 5])
def test_a_small_cache_changes_no_result_and_asks_nothing_twice_in_a_call(folder, judge, cache_size):
    groups = some_groups(30, 8, seed=5)
    small = EntailmentJudge(folder, device="cpu", cache_size=cache_size)
    assert torch.equal(small.clusters(groups), judge.clusters(groups))
    assert small.pairs_judged == judge.pairs_judged
    torch.testing.assert_close(small.matrix(groups), judge.matrix(groups), atol=1e-5, rtol=0, equal_nan=True)


def test_without_a_cache_a_call_does_not_depend_on_what_was_before(folder):
    judge = EntailmentJudge(folder, device="cpu", cache_size=0, batch_size=5)
    groups = some_groups(10, 6, seed=6)
    first = judge.matrix(groups)
    judge.matrix(some_groups(3, 6, seed=7))
    assert torch.equal(judge.matrix(groups).nan_to_num(-1.0), first.nan_to_num(-1.0))


@pytest.mark.parametrize("padding", [None, 0, 32])
def test_batches_are_sorted_by_tokens(folder, monkeypatch, padding):
    judge = EntailmentJudge(folder, device="cpu", batch_size=20)
    expected = judge.matrix([ANSWERS])
    monkeypatch.setattr(entail, "CPU_PADDING", padding)
    other = EntailmentJudge(folder, device="cpu", batch_size=20)
    widths = []
    other.model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["attention_mask"].sum(1).tolist()), with_kwargs=True
    )
    torch.testing.assert_close(other.matrix([ANSWERS]), expected, atol=1e-5, rtol=0)
    flat = [width for batch in widths for width in batch]
    assert flat == sorted(flat, reverse=True)
    assert flat[0] > flat[-1] + 10
    assert len(flat) == 210
    assert max(map(len, widths)) == 20
    padded = [batch[0] * len(batch) - sum(batch) for batch in widths]
    if padding is None:
        assert [len(batch) for batch in widths] == [20] * 10 + [10]
        assert max(padded) > 32
    else:
        assert max(padded) <= padding
        steps = zip(pairwise(widths), padded, strict=False)
        assert all(len(batch) == 20 or held + batch[0] - after[0] > padding for (batch, after), held in steps)


def test_the_matrix(judge):
    p = judge.matrix([["Paris", " \n", "Lyon", "Paris"]])
    assert p.shape == (1, 4, 4, 3)
    assert p.dtype == torch.float32
    kept = [0, 2, 3]
    assert p[0, kept][:, kept].isfinite().all()
    assert p[0, 1].isnan().all()
    assert p[0, :, 1].isnan().all()
    for i, j in [(0, 0), (2, 2), (3, 3), (0, 3), (3, 0)]:
        assert p[0, i, j].tolist() == [0, 0, 1]
    torch.testing.assert_close(p[0, kept][:, kept].sum(-1), torch.ones(3, 3))
    assert torch.equal(p[0, 0, 2], judge.probabilities(["Paris"], ["Lyon"])[0])
    assert not torch.allclose(p[0, 0, 2], p[0, 2, 0])


def test_the_matrix_is_what_kernel_language_entropy_reads(judge):
    groups = [["Paris", "Paris", "Paris"], ["", " ", "Paris"]]
    apart = kernel_language_entropy(judge.matrix(groups), rescale=True)
    torch.testing.assert_close(apart, torch.tensor([0.0, 1.0]))


def test_empty_answers_are_alone_under_every_rule(judge):
    for rule in RULES:
        assert judge.clusters([["", "Paris", "", " \t", "Paris"]], rule, 0.0).tolist() == [[0, 1, 2, 3, 1]]
    assert judge.pairs_judged == 0


def test_equal_answers_may_part_as_the_rule_has_it(judge, monkeypatch):
    """b joins a with 0.4; c opens a cluster and entails b with 0.9, so that the second b goes there; a stays with a."""
    table = {("a", "b"): 0.4, ("a", "c"): 0.1, ("c", "b"): 0.9}
    asked = []

    def ask_model(pairs):
        asked.extend(pairs)
        return [(0.0, 1 - table[pair], table[pair]) for pair in pairs]

    monkeypatch.setattr(judge, "_run_model", ask_model)
    assert judge.clusters([["a", "b", "c", "b", "c", "a"]]).tolist() == [[0, 0, 1, 1, 1, 0]]
    assert sorted(asked) == sorted(table)


def test_questions_come_before_answers(judge):
    groups = [["Paris", "Lyon", ""]]
    question = "the capital is"
    p = judge.matrix(groups, [question])
    assert torch.equal(p[0, 0, 1], judge.probabilities([f"{question} Paris"], [f"{question} Lyon"])[0])
    assert not torch.allclose(p[0, 0, 1], judge.matrix(groups)[0, 0, 1])
    assert p[0, 2].isnan().all()
    threshold = (p[0, 0, 1, 2].item() + judge.matrix(groups)[0, 0, 1, 2].item()) / 2
    plain = judge.clusters(groups, threshold=threshold).tolist()
    assert judge.clusters(groups, threshold=threshold, questions=[question]).tolist() != plain


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_labels_in_any_order(tmp_path, judge, order):
    names = {k: LABELS[index].upper() if k else LABELS[index].title() for k, index in enumerate(order)}
    other = EntailmentJudge(save(tmp_path, names, list(order)), device="cpu")
    pair = ANSWERS[:4], ANSWERS[4:8]
    torch.testing.assert_close(other.probabilities(*pair), judge.probabilities(*pair))


@pytest.mark.parametrize("names", [["entailment", "not_entailment"], ["non_entailment", "ENTAILMENT"]])
def test_two_labels(tmp_path, names):
    judge = EntailmentJudge(save(tmp_path, dict(enumerate(names))), device="cpu")
    premises, hypotheses = ANSWERS[:4], ANSWERS[4:8]
    p = judge.probabilities(premises, hypotheses)
    encoded = judge.tokenizer(premises, hypotheses, padding=True, return_tensors="pt")
    expected = judge.model(**encoded).logits.softmax(-1)[:, [n.lower() == "entailment" for n in names]]
    torch.testing.assert_close(p[:, 2:], expected.detach())
    torch.testing.assert_close(p[:, 1], 1 - p[:, 2])
    assert (p[:, 0] == 0).all()


def test_labels_without_names_are_those_of_roberta(tmp_path, judge):
    with pytest.warns(UserWarning, match="index 2 is entailment"):
        other = EntailmentJudge(save(tmp_path, {k: f"LABEL_{k}" for k in range(3)}), device="cpu")
    assert torch.equal(other.probabilities(["Paris"], ["Lyon"]), judge.probabilities(["Paris"], ["Lyon"]))


@pytest.mark.parametrize(
    ("names", "columns"),
    [(["neutral", "entails", "contradiction"], [2, 0, 1]), (["entailment", "unknown", "contradiction"], [2, 1, 0])],
)
def test_the_third_label_is_what_is_left(tmp_path, names, columns):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert EntailmentJudge(save(tmp_path, dict(enumerate(names))), device="cpu").columns == columns


@pytest.mark.parametrize(
    "names",
    [
        ["LABEL_0", "LABEL_1"],
        ["positive"],
        ["a", "b", "c", "entailment"],
        ["entailment", "yes", "no"],
        ["a", "b", "neutral"],
        ["a", "contradiction", "b"],
        ["neutral", "a", "b"],
    ],
)
def test_other_labels_are_refused(tmp_path, names):
    with pytest.raises(CalibrantError, match="not those of entailment"):
        EntailmentJudge(save(tmp_path, dict(enumerate(names))), device="cpu")


@pytest.mark.parametrize("sides", [("long", "short"), ("short", "long"), ("long", "long")])
def test_long_texts_are_cut_as_the_tokenizer_cuts_pairs(judge, sides):
    count = 400 if sides == ("long", "long") else 5000  # two long ones take the tokenizer itself a minute
    long = random.Random(0).choices(" ".join(ANSWERS).split(), k=count)
    premise, hypothesis = (" ".join(long) if side == "long" else "a large city" for side in sides)
    if sides == ("long", "long"):
        hypothesis = " ".join(reversed(long))  # another one, with as many tokens
    assert judge.max_length == 64
    rows = []
    judge.model.register_forward_pre_hook(lambda _, __, k: rows.append(k["input_ids"]), with_kwargs=True)
    p = judge.probabilities([premise], [hypothesis])
    encoded = judge.tokenizer(premise, hypothesis, truncation="longest_first", max_length=64, return_tensors="pt")
    assert torch.equal(rows[0], encoded["input_ids"])
    torch.testing.assert_close(p, judge.model(**encoded).logits.softmax(-1).detach())


def test_texts_cut_on_the_left(judge):
    judge.tokenizer.truncation_side = "left"
    text = "Paris " * 100 + "the euro"
    p = judge.probabilities([text], ["Lyon"])
    encoded = judge.tokenizer(text, "Lyon", truncation="longest_first", max_length=64, return_tensors="pt")
    torch.testing.assert_close(p, judge.model(**encoded).logits.softmax(-1).detach())


def test_long_texts_take_no_long_time(judge):
    """Of 6 long texts, 30 pairs: each is tokenised once, not in each pair, where the tokenizer is slow to cut it."""
    texts = [f"{i} " + "the capital is not Paris " * 200 for i in range(6)]
    seen = []
    tokenize = judge.tokenizer

    class Counting:
        def __getattr__(self, name):
            return getattr(tokenize, name)

        def __call__(self, *texts, **options):
            seen.extend(len(text) for side in texts for text in side)
            return tokenize(*texts, **options)

    judge.tokenizer = Counting()
    judge.matrix([texts])
    assert sum(length > 1000 for length in seen) == 6


def test_max_length(folder):
    judge = EntailmentJudge(folder, device="cpu", max_length=12)
    widths = []
    judge.model.register_forward_pre_hook(lambda _, __, k: widths.append(k["input_ids"].shape), with_kwargs=True)
    judge.probabilities(["Paris " * 30, "Paris"], ["Lyon " * 30, "Lyon"])
    assert widths == [(2, 12)]
    for wrong in (0, 4, 65, 12.0, True):
        with pytest.raises(CalibrantError, match="max_length"):
            EntailmentJudge(folder, device="cpu", max_length=wrong)


def test_positions_that_begin_after_the_padding(tmp_path):
    """RoBERTa numbers positions from its padding index + 1 on: of 40 positions, 39 are left."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    options = {"vocab_size": tokenizer(tmp_path), "max_position_embeddings": 40, "pad_token_id": 0, "id2label": LABELS}
    RobertaForSequenceClassification(RobertaConfig(**small, **options, type_vocab_size=2)).save_pretrained(tmp_path)
    judge = EntailmentJudge(str(tmp_path), device="cpu")
    assert judge.max_length == 39
    assert judge.probabilities(["Paris " * 100], ["Lyon " * 100]).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_bfloat16(folder, judge, dtype):
    half = EntailmentJudge(folder, device="cpu", dtype=dtype)
    assert half.model.dtype == torch.bfloat16
    p = half.matrix([ANSWERS])
    assert p.dtype == torch.float32
    assert 1e-4 < (p - judge.matrix([ANSWERS])).abs().mean() < 0.05
    assert (p.sum(-1) - 1).abs().max() < 1e-5  # the probabilities themselves are computed in float32
    assert (half.clusters([ANSWERS]) >= 0).all()


def test_float32_whatever_was_saved(tmp_path, judge):
    save(tmp_path)
    network = BertForSequenceClassification.from_pretrained(tmp_path)
    network.to(torch.float16).save_pretrained(tmp_path)
    other = EntailmentJudge(str(tmp_path), device="cpu")
    assert other.model.dtype == torch.float32
    assert not other.model.training
    torch.testing.assert_close(other.matrix([ANSWERS]), judge.matrix([ANSWERS]), atol=0.02, rtol=0)


def test_it_says_where_it_is(judge, folder):
    assert judge.device == torch.device("cpu")
    assert repr(judge) == f"EntailmentJudge({folder!r}, device='cpu', dtype=torch.float32)"


def test_nothing_to_judge(judge):
    assert judge.probabilities([], []).shape == (0, 3)
    assert judge.matrix([]).shape == (0, 0, 0, 3)
    assert judge.clusters([]).shape == (0, 0)
    assert judge.clusters([["Paris"], ["Lyon"]]).tolist() == [[0], [0]]
    assert judge.pairs_judged == 0


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(CalibrantError, match=r"cannot load the entailment model .*give a folder"):
        EntailmentJudge(str(tmp_path))


def test_a_broken_folder(tmp_path):
    save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CalibrantError, match="cannot load the entailment model"):
        EntailmentJudge(str(tmp_path))


def test_weights_that_could_run_code_are_refused(tmp_path):
    save(tmp_path)
    weights = BertForSequenceClassification.from_pretrained(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(CalibrantError, match="safetensors"):
        EntailmentJudge(str(tmp_path))


def test_a_model_that_was_not_trained_to_classify(tmp_path):
    save(tmp_path)
    BertModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    with pytest.raises(CalibrantError, match=r"not trained to classify.*classifier"):
        EntailmentJudge(str(tmp_path))


def test_no_hub(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(CalibrantError, match="hub cannot be reached; give a folder"):
        EntailmentJudge("nobody/roberta-large-mnli")


@pytest.mark.parametrize("options", [{"device": "nowhere"}, {"dtype": "float33"}])
def test_a_device_or_type_that_is_none(folder, options):
    with pytest.raises(CalibrantError, match=next(iter(options.values()))):
        EntailmentJudge(folder, **options)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2.0}, {"cache_size": -1}])
def test_sizes_that_are_none(folder, options):
    with pytest.raises(CalibrantError, match=next(iter(options))):
        EntailmentJudge(folder, **options)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((["Paris", "Lyon"],), "flat list"),
        (("Paris",), "flat list"),
        (([["a", "b"], ["a"]],), r"groups of \[1, 2\]"),
        (([["a", None]],), "NoneType"),
        (([["a", "b"]], "greed"), "did you mean 'greedy'"),
        (([["a", "b"]], ("strict", "never")), "assignment"),
        (([["a", "b"]], "greedy", 1.5), "threshold"),
        (([["a", "b"]], "greedy", 0.35, ["q", "r"]), "one question per group, 1, got 2"),
        (([["a", "b"]], "greedy", 0.35, "q"), "one question per group"),
        (([["a", "b"]], "greedy", 0.35, None, torch.ones(1, 3, dtype=torch.bool)), r"\[1, 2\], got .*\[1, 3\]"),
        (([["a", "b"]], "greedy", 0.35, None, torch.ones(1, 2)), "boolean"),
    ],
)
def test_what_is_no_groups_is_refused(judge, arguments, problem):
    with pytest.raises(CalibrantError, match=problem):
        judge.clusters(*arguments)


def test_premises_without_hypotheses(judge):
    with pytest.raises(CalibrantError, match="2 premises but 1 hypotheses"):
        judge.probabilities(["a", "b"], ["a"])


def test_greedy_is_the_rule_of_greedy_clusters(judge):
    groups = some_groups(50, 8, seed=8)
    assert torch.equal(judge.clusters(groups), greedy_clusters(judge.matrix(groups)[..., 2]))
