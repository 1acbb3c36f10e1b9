"""Builders and constants of the tests of text."""

import random

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

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


def some_groups(count, size, seed=0):
    """Groups with repeated and empty answers."""
    choose = random.Random(seed)
    pools = (choose.choices([*ANSWERS, "", " "], k=choose.randint(1, size)) for _ in range(count))
    return [choose.choices(pool, k=size) for pool in pools]


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
